"""Files that older versions wrote, as `make.py` beside them says."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch

from cfmask import load_classifier

OLD = Path(__file__).parent / "fixtures" / "v0.1"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A copy of the files, unpacked. Tests only read it."""
    folder = tmp_path_factory.mktemp("old") / "v0.1"
    shutil.copytree(OLD, folder)
    packed = folder / "timm.safetensors.xz"
    (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("path", "like"),
    [
        ("openclip.safetensors", "openclip.safetensors"),
        ("timm.safetensors", "timm.safetensors"),
        ("run", "run"),
        ("run/checkpoints/last.ckpt", "run"),
    ],
)
@torch.no_grad()
def test_a_classifier_of_an_older_version_gives_the_logits_that_it_gave_there(old, path, like):
    classifier = load_classifier(old / path)
    images = torch.rand(2, 3, *classifier.image_size, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(json.loads((old / "logits.json").read_text())[like])
    torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=1e-4)
