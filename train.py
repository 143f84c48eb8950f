"""Fine-tune and evaluate, as ``cfmask train``: ``python train.py --config configs/demo.yaml``."""

import sys

from cfmask.commands.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
