"""`deepspeed launch/train_clip.py --config FILE.yaml …`: what `dalle-train-clip` is, for a launcher that wants a file."""

from dalle.cli.train import train_clip

if __name__ == "__main__":
    train_clip()
