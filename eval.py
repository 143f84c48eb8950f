"""Evaluate models under shift: ``python eval.py runs/demo --shifts digits``."""

import os

# Threads that wait for each other let go of a core that other programs want; read at first import.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

from cfmask.commands.eval_models import evaluate_run

if __name__ == "__main__":
    evaluate_run()
