"""Inference: models on sets -> answers, every image read once."""
