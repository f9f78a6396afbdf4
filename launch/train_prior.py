"""`deepspeed launch/train_prior.py --config FILE.yaml …`: what `dalle-train-prior` is, for a launcher that wants a file."""

from dalle.cli.train import train_prior

if __name__ == "__main__":
    train_prior()
