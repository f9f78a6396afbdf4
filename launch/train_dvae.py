"""`deepspeed launch/train_dvae.py --config FILE.yaml …`: what `dalle-train-dvae` is, for a launcher that wants a file."""

from dalle.cli.train import train_dvae

if __name__ == "__main__":
    train_dvae()
