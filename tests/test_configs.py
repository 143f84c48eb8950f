from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_train import photos

from cfmask import ShiftReport
from cfmask.train_command import train

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
# What a config needs that is not at hand here, and what stands in for it.
STAND_INS = {
    "folder.yaml": ["--model.classifier.model=tiny-clip", "--model.classifier.pretrained=null"],
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_trains_a_step_and_reports(config, tmp_path):
    text = config.read_text()
    assert f"python train.py --config configs/{config.name}" in text
    run = tmp_path / "run"
    args = ["--config", str(config), f"--run={run}", "--trainer.max_epochs=1"]
    args += ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    args += ["--trainer.accelerator=cpu", "--data.batch_size=8", *STAND_INS.get(config.name, [])]
    if "FolderData" in text:
        root = photos(tmp_path / "photos")
        args += [f"--data.root={root}", f"--evaluation.data_root={root}"]
        args += ["--data.workers=0", "--evaluation.workers=0"]
    else:
        args += ["--data.train_images=8", "--data.val_images=8", "--evaluation.images=8"]
    train(args)
    report = ShiftReport.load(run / "report.json")
    assert {row.model for row in report.rows} >= {"tuned", "WiSE-FT 0.5"}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_config_keeps_the_recipe_it_does_not_change(config):
    content = yaml.safe_load(config.read_text())
    assert content["run"].startswith("runs/")
    assert content["seed_everything"] == 0
    assert "gradient_clip_val" not in content["trainer"]
