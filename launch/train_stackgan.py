"""`deepspeed launch/train_stackgan.py --config FILE.yaml …`: what `dalle-train-stackgan` is, for a launcher that wants a file."""

from dalle.cli.train import train_stackgan

if __name__ == "__main__":
    train_stackgan()
