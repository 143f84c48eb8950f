"""Merging: several tuned models, or one and its starting point -> one, after training."""
