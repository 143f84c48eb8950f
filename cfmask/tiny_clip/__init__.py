"""The tiny CLIP that ships with the package; `benchmarks/pretrain_tiny_clip.py` makes it."""
