"""RunFolder: where a run keeps its config, weights, metrics, pictures and report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cfmask.checkpoint import (
    PRETRAINED,
    WEIGHTS,
    interpolate,
    load_classifier,
    save_classifier,
)
from cfmask.classifier import Classifier
from cfmask.data.shifts import Request, find_shifts
from cfmask.errors import InputError
from cfmask.evaluate import evaluate
from cfmask.inference import Precision
from cfmask.report import ShiftReport
from cfmask.summary import SUMMARY, Announce

CONFIG = "config.yaml"


class RunFolder:
    """The folder of one run.

    Holds config.yaml, weights.safetensors (tuned), pretrained.safetensors (the starting point),
    checkpoints/ (for going on), tensorboard/ and metrics.csv, report.json and the pictures.

    Args:
        path: the folder; nothing is written before `start`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check(self, config: str, overwrite: bool) -> None:
        """Refuse a folder that holds another run.

        Args:
            config: the YAML text of the run that is to begin.
            overwrite: True allows it.

        Raises:
            InputError: the folder holds files that are not a run's, or another run's.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        file = self.path / CONFIG
        if not file.is_file():
            raise InputError(
                f"Expected a new folder or a run folder, but {self.path} holds other files."
            )
        if not overwrite and _settings(file.read_text()) != _settings(config):
            raise InputError(
                f"{self.path} holds a run of another config; give another --run, or --overwrite."
            )

    def start(self, config: str, classifier: Classifier) -> None:
        """Clear what an older run left, then write the config and the starting point."""
        if self.path.is_dir() and (self.path / CONFIG).is_file():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / CONFIG).write_text(config)
        save_classifier(classifier, self.path / PRETRAINED)

    def clear_unless_trained(self) -> None:
        """Remove the folder if the run ended before its first checkpoint."""
        if not any((self.path / "checkpoints").glob("*.ckpt")):
            shutil.rmtree(self.path, ignore_errors=True)

    def loggers(self) -> list[Any]:
        """A TensorBoard logger and one for CSV."""
        return [
            TensorBoardLogger(self.path, name=None, version="tensorboard"),
            CSVLogger(self.path, name=None, version="csv"),
        ]

    def callbacks(self) -> list[pl.Callback]:
        """Summary, progress bar, checkpoints of the last and of the best epoch by validation."""
        best = ModelCheckpoint(
            self.path / "checkpoints",
            filename="best",
            monitor="val/accuracy",
            mode="max",
            save_last=True,
            enable_version_counter=False,
        )
        return [Announce(self.path / SUMMARY), RichProgressBar(leave=True), best]

    def finish(self) -> Classifier:
        """Write the weights of the best epoch as weights.safetensors and give the classifier."""
        tuned = load_classifier(self.path / "checkpoints" / "best.ckpt")
        save_classifier(tuned, self.path / WEIGHTS)
        return tuned

    def config(self) -> dict[str, Any]:
        """The run's configuration.

        Raises:
            InputError: not a run folder.
        """
        file = self.path / CONFIG
        if not file.is_file():
            raise InputError(f"Expected a run folder with {CONFIG}, but got {self.path}.")
        content: dict[str, Any] = yaml.safe_load(file.read_text())
        return content

    def models(self, alphas: Sequence[float]) -> dict[str, Classifier]:
        """The rows of the run's report: starting point, tuned, WiSE-FT at each alpha."""
        start, tuned = load_classifier(self.path, PRETRAINED), load_classifier(self.path)
        first = "zero-shot" if start.spec["head"] == "zero_shot" else "pretrained"
        mixed = {f"WiSE-FT {alpha:g}": interpolate(start, tuned, alpha) for alpha in alphas}
        return {first: start, "tuned": tuned, **mixed}

    def evaluate(
        self,
        shifts: list[str] = ["digits"],  # noqa: B006
        data_root: str | None = None,
        alphas: list[float] = [0.5],  # noqa: B006
        images: int = 1000,
        seed: int = 0,
        batch_size: int = 250,
        workers: int = 0,
        precision: Precision = "fp32",
        allow_incomplete: bool = False,
    ) -> ShiftReport:
        """Evaluate starting point, tuned model and WiSE-FT; write report.json and a picture.

        Args:
            shifts: families of shift sets (`digits`, `folders`, `imagenet`), or single sets
                (`digits/sketch`, `imagenet/objectnet`).
            data_root: folder with the images, for sets that are not built in.
            alphas: WiSE-FT weights in [0, 1], each a row.
            images: number of images of each built-in set.
            seed: of the built-in sets.
            batch_size: images at a time.
            workers: processes that decode images.
            precision: of the encoders.
            allow_incomplete: evaluate sets whose number of images is not the published one; the
                report says so.
        """
        models = self.models(alphas)
        names = models["tuned"].class_names
        root = Path(data_root) if data_root else None
        request = Request(root, names, images, seed, allow_incomplete)
        found = find_shifts(shifts, request)
        report = evaluate(models, found, batch_size, workers, precision, progress=True)
        report.save(self.path / "report.json")
        report.plot_trade_off(self.path / "trade_off.png")
        return report


def _settings(config: str) -> dict[str, Any]:
    """The settings of a config, but for the path of the run folder itself."""
    return {key: value for key, value in yaml.safe_load(config).items() if key != "run"}
