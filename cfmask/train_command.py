"""The command train.py: arguments -> tuned model -> report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from cfmask.classifier import Classifier
from cfmask.command import OneLineParser, one_line_errors, print_table, quiet
from cfmask.data.datamodule import TrainingData
from cfmask.data.shifts import Request, find_shifts
from cfmask.errors import InputError
from cfmask.methods import MaskedDistillation, Method
from cfmask.run_folder import RunFolder
from cfmask.show import draw_gallery, first_of_each_class

RECIPE = {"max_epochs": 10, "gradient_clip_val": 1.0, "log_every_n_steps": 10}


def train(args: Sequence[str] | None = None) -> None:
    """Fine-tune, then evaluate: the whole of ``train.py``.

    Args:
        args: command line without the program; the process's own by default.
    """
    quiet()
    with one_line_errors():
        cli = TrainCLI(
            Method,
            TrainingData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            seed_everything_default=0,
            save_config_callback=None,
            trainer_defaults=RECIPE,
            args=None if args is None else list(args),
        )
        folder = RunFolder(cli.config.run)
        _check(cli, folder)
        if cli.config.probe:
            cli.model.probe(cli.datamodule)
        folder.start(cli.config_text(), cli.model.classifier)
        try:
            cli.trainer.fit(cli.model, cli.datamodule)
        except InputError:
            folder.clear_unless_trained()
            raise
        _gallery(cli, folder.finish(), folder)
        report = folder.evaluate(**cli.config.evaluation.as_dict())
        print_table(report.table(), folder.path)


class TrainParser(LightningArgumentParser, OneLineParser):
    """Lightning's parser with one-line errors."""


class TrainCLI(LightningCLI):
    """Lightning's command line with a run folder and an evaluation."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """See `LightningCLI.init_parser`."""
        parser = TrainParser(**{**kwargs, "allow_abbrev": False})
        parser.add_argument("-c", "--config", action="config", help="YAML file with any of these.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See `LightningCLI.add_arguments_to_parser`."""
        parser.add_argument("--run", type=str, default="runs/run", help="folder of the run")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="replace another run there"
        )
        parser.add_argument(
            "--probe",
            type=bool,
            default=False,
            help="fit the head to the frozen encoder's features first, as a fresh head needs",
        )
        parser.add_method_arguments(RunFolder, "evaluate", "evaluation")
        parser.link_arguments(
            "data",
            "model.init_args.classifier.init_args.class_names",
            compute_fn=_class_names,
            apply_on="instantiate",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Trainer that logs and saves in the run folder."""
        folder = RunFolder(self.config.run)
        own = self.config_init.trainer.callbacks or []
        return super().instantiate_trainer(
            logger=folder.loggers(), callbacks=[*own, *folder.callbacks()], **kwargs
        )

    def config_text(self) -> str:
        """The whole configuration as YAML, but for where it is kept."""
        config = self.config.clone()
        for key in ("config", "overwrite"):
            config.pop(key, None)
        text: str = self.parser.dump(config, skip_link_targets=True, skip_none=False)
        return text


def _class_names(data: TrainingData) -> list[str]:
    return list(data.class_names)


def _check(cli: TrainCLI, folder: RunFolder) -> None:
    """All that can be wrong, before anything is written or trained."""
    folder.check(cli.config_text(), cli.config.overwrite)
    cli.model.check(cli.datamodule)
    wanted = cli.config.evaluation
    root = Path(wanted.data_root) if wanted.data_root else None
    names = cli.model.classifier.class_names
    request = Request(root, names, wanted.images, wanted.seed, wanted.allow_incomplete)
    find_shifts(wanted.shifts, request)
    cli.datamodule.prepare(cli.model.classifier.preprocess)


def _gallery(cli: TrainCLI, tuned: Classifier, folder: RunFolder) -> None:
    """Picture of the tuned model on validation images, for methods that mask."""
    if isinstance(cli.model, MaskedDistillation):
        images, labels = first_of_each_class(cli.datamodule.val_set, 8)
        if len(labels) > 1:
            draw_gallery(
                folder.path / "gallery.png",
                tuned,
                cli.model.relevance,
                cli.model.counterfactuals[0],
                images.float() / 255,
                labels,
            )
