"""Parts of a run, built from its config alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cfmask import FolderData, RandomCrop
from cfmask.commands.train_model import command_line
from cfmask.commands.train_words import prepared
from cfmask.data.datamodule import TrainingData
from cfmask.runs.parts import built

SOURCE = Path("runs/x/config.yaml")


def config(capsys, *words: str) -> dict:
    """What a run keeps of its settings, whole."""
    with pytest.raises(SystemExit):
        command_line([*prepared(words), "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("crop", [None, "RandomCrop"])
def test_data_of_a_run_with_and_without_augmentation(crop, class_photos, capsys):
    words = [str(class_photos.parent), *(["--data.crop", crop] if crop else [])]
    data = built(config(capsys, *words)["data"], TrainingData, SOURCE)
    assert isinstance(data, FolderData)
    assert isinstance(data.crop, RandomCrop if crop else type(None))
