from __future__ import annotations

import pytest
import torch

from cfmask import (
    AttentionRelevance,
    Counterfactual,
    InputError,
    MaskedDistillation,
    ObjectMask,
    SavedRelevance,
    SingleFill,
    save_relevance,
)
from cfmask.relevance import Relevance


class Known(Relevance):
    """Maps of any grid that tell the label and the position."""

    def __init__(self, h, w):
        self.grid = (h, w)

    def explain(self, classifier, images, labels):
        h, w = self.grid
        maps = torch.arange(h * w).view(1, h, w) / (h * w) * (1 + labels.view(-1, 1, 1)) / 11
        return classifier(images), maps


@pytest.mark.parametrize("grid", [(6, 6), (14, 14), (9, 16)])
def test_maps_of_any_grid_come_back_for_their_own_image(tiny_clip, digit_batch, tmp_path, grid):
    images, labels = digit_batch
    path = tmp_path / "maps.safetensors"
    save_relevance(
        path, tiny_clip, Known(*grid), [(images[:5], labels[:5]), (images[5:], labels[5:])]
    )
    order = torch.tensor([6, 0, 3, 7])
    logits, maps = SavedRelevance(str(path)).explain(tiny_clip, images[order], labels[order])
    want = Known(*grid).explain(tiny_clip, images[order], labels[order])[1]
    assert torch.allclose(maps, want, atol=1e-3)
    assert torch.allclose(logits, tiny_clip(images[order]))


def test_saved_maps_of_the_start_give_the_first_step_of_live_ones(tiny_clip, digit_batch, tmp_path):
    path = tmp_path / "maps.safetensors"
    save_relevance(path, tiny_clip, AttentionRelevance(), [digit_batch])
    losses = []
    for relevance in (AttentionRelevance(), SavedRelevance(str(path))):
        make = Counterfactual(ObjectMask(0.3), SingleFill())
        method = MaskedDistillation(tiny_clip, make, relevance, distance="logit")
        method.log = lambda *args, **kwargs: None
        with torch.no_grad():
            method.teacher.encoder.proj.mul_(0.9)
        torch.manual_seed(0)
        losses.append(method.losses(*digit_batch)["distill"])
    assert torch.allclose(losses[0], losses[1], rtol=0.02)


def test_an_image_without_a_map_is_said(tiny_clip, digit_batch, tmp_path):
    images, labels = digit_batch
    path = tmp_path / "maps.safetensors"
    save_relevance(path, tiny_clip, Known(6, 6), [digit_batch])
    with pytest.raises(InputError, match="8 of 8 have none; were they augmented"):
        SavedRelevance(str(path)).explain(tiny_clip, images.flip(-1), labels)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        SavedRelevance(str(tmp_path / "none"))
    path = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="save_relevance wrote"):
        SavedRelevance(str(path))
