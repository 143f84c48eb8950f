"""Fine-tune and evaluate: ``python train.py --config configs/demo.yaml``."""

from cfmask.train_command import train

if __name__ == "__main__":
    train()
