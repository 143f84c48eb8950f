"""Fine-tune and evaluate: ``python train.py --config configs/demo.yaml``."""

from cfmask.commands.train import train

if __name__ == "__main__":
    train()
