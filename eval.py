"""Evaluate a run: ``python eval.py runs/demo --shifts digits``."""

from cfmask.commands.evaluate import evaluate_run

if __name__ == "__main__":
    evaluate_run()
