"""Data: training images in folders, shards and datasets, and the order of an epoch."""
