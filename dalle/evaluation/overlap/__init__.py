"""Which images of one set are near those of another: copies of evaluation images among training images (section 3.2 of
"Zero-Shot Text-to-Image Generation"), and samples that are training images remembered."""
