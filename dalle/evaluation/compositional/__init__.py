"""What of a caption a picture shows, fact by fact, on the drawn data set."""
