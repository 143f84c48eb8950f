"""Evaluation: models and sets -> exact counts, measures and comparisons."""
