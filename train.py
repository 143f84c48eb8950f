"""Fine-tune and evaluate: ``python train.py --config configs/demo.yaml``."""

import os

# Threads that wait for each other let go of a core that other programs want; read at first import.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from cfmask.commands.train_model import train

if __name__ == "__main__":
    train()
