from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from cfmask import AttentionRelevance, Counterfactual, RandomMask, SingleFill
from cfmask.data.datamodule import Tensors
from cfmask.show import draw_gallery, first_of_each_class


def test_the_gallery_shows_what_was_replaced(tiny_clip, digit_batch, tmp_path):
    images, labels = torch.ones(8, 3, 48, 48), digit_batch[1]
    before = {k: v.clone() for k, v in tiny_clip.state_dict().items()}
    pictures = {}
    for share in (0.0, 1.0):
        path = tmp_path / f"{share}.png"
        make = Counterfactual(RandomMask(share), SingleFill())
        draw_gallery(path, tiny_clip, AttentionRelevance(), make, images, labels)
        pictures[share] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    changed = np.abs(pictures[0.0] - pictures[1.0]).sum(-1) > 0
    width = changed.shape[1]
    columns = changed.any(0).nonzero()[0]
    assert changed.mean() > 0.1
    # Only the mask column, the third of four, can differ: all images are white.
    assert columns.min() > 0.45 * width and columns.max() < 0.85 * width
    assert all(torch.equal(v, before[k]) for k, v in tiny_clip.state_dict().items())


def test_pictures_are_chosen_one_a_class():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    chosen, labels = first_of_each_class(Tensors(images, torch.tensor([2, 2, 0, 2, 0, 1])), 2)
    assert labels.tolist() == [0, 2]
    assert chosen[:, 0, 0, 0].tolist() == [2, 0]
