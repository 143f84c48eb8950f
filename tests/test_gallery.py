from __future__ import annotations

import copy

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger

from cfmask import (
    AttentionRelevance,
    ContextMask,
    Counterfactual,
    DigitsData,
    FineTuning,
    MaskedDistillation,
    NoFill,
    ObjectMask,
    RandomMask,
    SavedRelevance,
    SingleFill,
    save_relevance,
)
from cfmask.counterfactual import pixels
from cfmask.data.datamodule import Tensors
from cfmask.reporting.sheet import draw, sheet
from cfmask.runs.gallery import EpochGallery, columns, first_of_each_class, of_method


def test_the_gallery_shows_what_was_replaced(tiny_clip, digit_batch, tmp_path):
    images, labels = torch.ones(8, 3, 48, 48), digit_batch[1]
    before = {k: v.clone() for k, v in tiny_clip.state_dict().items()}
    pictures = {}
    for share in (0.0, 0.999):
        path = tmp_path / f"{share}.png"
        make = [Counterfactual(RandomMask(share), SingleFill())]
        draw(path, columns(tiny_clip, AttentionRelevance(), make, images, labels), ["x"] * 8)
        pictures[share] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    changed = np.abs(pictures[0.0] - pictures[0.999]).sum(-1) > 0
    width = changed.shape[1]
    places = changed.any(0).nonzero()[0]
    assert changed.mean() > 0.1
    # Only the mask column, the third of four, can differ: all images are white.
    assert places.min() > 0.45 * width and places.max() < 0.85 * width
    assert all(torch.equal(v, before[k]) for k, v in tiny_clip.state_dict().items())


def test_every_mask_and_what_it_makes_has_its_columns(tiny_clip, digit_batch):
    images, labels = digit_batch
    masks = ObjectMask(0.3), ContextMask(0.3)
    make = [Counterfactual(masks[0], SingleFill()), Counterfactual(masks[1], NoFill())]
    found = columns(tiny_clip, AttentionRelevance(), make, images, labels)
    assert list(found) == ["image", "relevance", "mask 1", "counterfactual 1", "mask 2"]
    _, maps = AttentionRelevance().explain(tiny_clip, images, labels)
    for name, mask in zip(("mask 1", "mask 2"), masks):
        replaced = pixels(mask(maps), images).expand_as(images)
        assert torch.equal(found[name][~replaced], images[~replaced])
        assert (found[name][replaced] == 0.5).all()
    kept = ~pixels(masks[0](maps), images).expand_as(images)
    assert torch.equal(found["counterfactual 1"][kept], images[kept])
    assert sheet(found).shape == (3, 8 * 52, 5 * 52)


def test_refills_take_from_donors_that_are_not_shown(tiny_clip):
    image, donors = torch.zeros(1, 3, 48, 48), torch.ones(4, 3, 48, 48)
    make = [Counterfactual(RandomMask(0.999), SingleFill("all"))]
    found = columns(tiny_clip, AttentionRelevance(), make, image, torch.tensor([3]), donors)
    assert all(len(pictures) == 1 for pictures in found.values())
    assert (found["counterfactual"] == 1).float().mean() > 0.9


def test_pictures_are_chosen_one_a_class():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    chosen, labels = first_of_each_class(Tensors(images, torch.tensor([2, 2, 0, 2, 0, 1])), 2)
    assert labels.tolist() == [0, 2]
    assert chosen[:, 0, 0, 0].tolist() == [2, 0]


def fitted(method, folder, *callbacks) -> torch.Tensor:
    """Weights after two epochs, from the same seed."""
    pl.seed_everything(5)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name=None, version="tensorboard"),
    )  # fmt: skip
    trainer.fit(method, DigitsData(16, 30, batch_size=8))
    return torch.nn.utils.parameters_to_vector(method.classifier.parameters())


@pytest.fixture
def masked(tiny_clip):
    return lambda: MaskedDistillation(
        copy.deepcopy(tiny_clip), Counterfactual(RandomMask(0.5), SingleFill())
    )


def test_every_epoch_has_its_picture_in_the_folder_and_in_tensorboard(masked, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drawn = fitted(masked(), tmp_path, EpochGallery(tmp_path / "gallery"))
    assert [p.name for p in sorted((tmp_path / "gallery").iterdir())] == [
        "epoch_0.png",
        "epoch_1.png",
    ]
    first, second = (np.asarray(Image.open(tmp_path / f"gallery/epoch_{k}.png")) for k in (0, 1))
    rows, wide = first.shape[0] // 52, 52
    assert first.shape == (rows * 52, 4 * wide, 3) and 5 < rows <= 8
    # The images and the chance are the same; the model is not.
    assert (first[:, :wide] == second[:, :wide]).all()
    assert (first[:, 2 * wide :] == second[:, 2 * wide :]).all()
    assert (first[:, wide : 2 * wide] != second[:, wide : 2 * wide]).any()
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("gallery")] == [2, 4]
    # Training goes on as if nothing had been drawn.
    assert torch.equal(drawn, fitted(masked(), tmp_path / "again"))


def test_a_method_that_masks_nothing_has_no_gallery(tiny_clip, tmp_path):
    fitted(FineTuning(tiny_clip), tmp_path, EpochGallery(tmp_path / "gallery"))
    assert not (tmp_path / "gallery").exists()


def white_runs(lines: np.ndarray) -> list[int]:
    """Lengths of the runs of lines on which there is nothing."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ~lines, [0]]).astype(int)))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize(("rows", "side"), [(8, (48, 48)), (1, (48, 48)), (3, (40, 80))])
def test_a_sheet_has_no_white_bands(tmp_path, rows, side):
    dark = torch.zeros(rows, 3, *side)
    draw(tmp_path / "x.png", {"image": dark, "mask": dark}, ["$a_b"] * rows)
    black = np.asarray(Image.open(tmp_path / "x.png").convert("L")) < 128
    # Neither above the titles nor below the pictures, nor between them but for a thin line.
    assert max(white_runs(black.any(1))) <= 16
    assert max(white_runs(black[:, black.shape[1] // 2 :].any(0))) <= 16
    tiles = black[30:, black.shape[1] * 3 // 4]
    high = tiles.sum() / rows
    wide = black[-len(tiles) // (2 * rows)].sum() / 2
    assert high / wide == pytest.approx(side[0] / side[1], rel=0.06)


def test_no_picture_ends_a_run(tiny_clip, small_cnn, digit_batch, tmp_path):
    """Maps that cannot be read for it are left out, or the picture is."""
    images, labels = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8), torch.tensor([0, 1])
    random = Counterfactual(RandomMask(0.5), SingleFill())
    method = MaskedDistillation(small_cnn, random, AttentionRelevance())
    assert list(of_method(method, small_cnn, images, labels)) == ["image", "mask", "counterfactual"]
    path = tmp_path / "maps.safetensors"
    save_relevance(path, tiny_clip, AttentionRelevance(), [digit_batch])
    saved = SavedRelevance(str(path))
    method = MaskedDistillation(tiny_clip, Counterfactual(ObjectMask(0.3), SingleFill()), saved)
    tiny_clip.train()
    with pytest.warns(UserWarning, match="No gallery of these images"):
        assert of_method(method, tiny_clip, images[..., :48, :48], labels) is None
    assert tiny_clip.training
