"""What each figure of a run means, in a sentence: for the report, beside its curve."""

from __future__ import annotations

FIGURES = {
    "loss": "What is minimised; lower is better.",
    "step_size": "The optimiser's, after its schedule.",
    "gradient_norm": "Of all gradients together, before they are clipped; a jump announces trouble.",
    "skipped": "Share of the updates since the last line that were not made, their gradients not being finite.",
    "images_per_s": "Over all processes, without validation, pictures and checkpoints.",
    "tokens_per_s": "Over all processes, without validation, pictures and checkpoints.",
    "mfu": "Model FLOPs utilisation: counted operations per second as a share of this machine's matrix-product rate.",
    "data_wait": "Share of the time that the main process waited for data.",
    "memory_gb": "The most that the main process has held so far.",
    "psnr_db": "Of reconstructions from the codes that inference takes; 20 dB is recognisable, 30 dB is close.",
    "bicubic_4x_psnr_db": "What a picture of a quarter of the side reaches in as many bits: what codes have to beat.",
    "bicubic_8x_psnr_db": "What a picture of an eighth of the side reaches in as many bits: what codes have to beat.",
    "perplexity": "How many codes are used, each weighted by how often; at 1 the codebook has collapsed.",
    "codes_used": "How many codes occur at all.",
    "kl_per_position_nats": "What a token tells, at most the logarithm of the codebook's size.",
    "reconstruction_nats": "−ln p of the pixels given the codes, per subpixel.",
    "elb": "The evidence lower bound with codes drawn from the encoder, per subpixel; higher is better.",
    "relaxed_elb": "The same with relaxed codes, which is what training sees.",
    "elb_gap": "How far the relaxed bound is above the true one, as a share of it.",
    "elb_gap_nats": "How far the relaxed bound is above the true one.",
    "temperature": "Of the gumbel-softmax: a schedule; near 0 relaxed codes are codes.",
    "kl_weight": "β, the weight of the KL term: a schedule.",
    "noise_scale": "Factor on the gumbel noise: a schedule.",
    "image_nats": "Mean cross-entropy of an image token.",
    "text_nats": "Mean cross-entropy of a caption token.",
    "caption_accuracy": "Share of images whose own caption is the best of the batch.",
    "image_accuracy": "Share of captions whose own image is the best of the batch.",
    "scale": "CLIP's logit scale, at most 100.",
}
