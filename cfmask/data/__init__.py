"""Data: training images, evaluation sets, the built-in digits world."""
