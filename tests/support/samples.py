"""Samples that a loader gives."""

from __future__ import annotations

from cfmask import ShardData


def seen(data: ShardData, epoch: int = 0) -> list[tuple[int, int]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [
        (int(image[0, 0, 0]), int(label))
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]
