"""Evaluate models under shift, as ``cfmask eval``: ``python eval.py runs/demo --shifts digits``."""

import sys

from cfmask.commands.main import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
