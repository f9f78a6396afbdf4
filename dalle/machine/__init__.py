"""What this machine can do, and what to do about what it cannot: each fact a line with a verdict. `dalle-doctor` tells them."""
