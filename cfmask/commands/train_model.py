"""The command train.py: arguments -> tuned model -> report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from jsonargparse import set_parsing_settings
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.seed import isolate_rng

from cfmask import processes
from cfmask.checkpoint import PRETRAINED, check_comes_back, load_classifier
from cfmask.classifier import Classifier
from cfmask.commands.blame import input_error, users_bug
from cfmask.commands.parser import (
    OneLineParser,
    load_public_classes,
    one_line_errors,
    print_report,
    quiet,
)
from cfmask.commands.train_settings import NOT_OURS, add_settings
from cfmask.commands.train_words import prepared
from cfmask.comparison.compare import check_run, compare
from cfmask.data.datamodule import TrainingData
from cfmask.data.folder_data import FolderData
from cfmask.errors import InputError, check_seed
from cfmask.files import write_text
from cfmask.methods import FineTuning, MaskedDistillation, Method
from cfmask.methods.averages import Average
from cfmask.reporting.report import ShiftReport
from cfmask.reporting.sheet import draw
from cfmask.runs.averaging import TrajectoryAverage
from cfmask.runs.equipment import callbacks_of, check_loggers, loggers_of
from cfmask.runs.faults import as_input_errors, endings
from cfmask.runs.gallery import GALLERY, ROWS, first_of_each_class, of_method
from cfmask.runs.marker import check_beginning
from cfmask.runs.metrics_file import MetricsLogger
from cfmask.runs.progress import LogSteps
from cfmask.runs.resume import CheckpointFiles, leads
from cfmask.runs.run_folder import CONFIG, RunFolder
from cfmask.runs.stopping import Stopping
from cfmask.runs.trainer import Trainer
from cfmask.shift import check_apart, local_folder
from cfmask.terminal import say
from cfmask.trust import also_from_here
from cfmask.weights import read_checkpoint

# Lightning has any text tried as an address in the network; configs are files.
set_parsing_settings(config_read_mode_fsspec_enabled=False)

RECIPE = {
    "max_epochs": 10,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
}

# The method that the others are compared with.
PLAIN = f"cfmask.{FineTuning.__name__}"

# What Lightning, jsonargparse and constructors raise at values that they cannot take.
UNFIT = (ValueError, TypeError, OverflowError, RuntimeError, MisconfigurationException)


def train(args: Sequence[str]) -> ShiftReport | None:
    """Fine-tune, then evaluate: the whole of ``cfmask train``.

    A run that lies in its folder finished is evaluated again, not trained.

    Args:
        args: command line without the program.

    Returns:
        The report of the starting point, the tuned model and what lies between them; None of a run
        that only tries whether all works.
    """
    quiet()
    with one_line_errors():
        cli = command_line(args)
        if cli.trial:
            cli.check()
            _try(cli)
            return None
        runs = [cli.folder.path]
        if beside := cli.config.baseline and cli.config.model.class_path != PLAIN:
            # What would be refused of the second run is refused before the first.
            with isolate_rng():
                runs.append(_plain(cli).folder.path)
        _carry_out(cli)
        if beside:
            _carry_out(_plain(cli))
        with cli.folder.held(), processes.joined():
            return _report(cli, runs)


def _carry_out(cli: TrainCLI) -> None:
    """Train, unless the run lies in its folder finished."""
    if cli.finished:
        with cli.folder.held():
            cli.folder.keep_config(cli.config_text())
        return
    cli.check()
    with cli.folder.held():
        with endings(cli.trainer, cli.folder, cli.stopping):
            cli.begin()
            cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=cli.checkpoint)
        processes.from_first(lambda: _finish(cli))


def command_line(args: Sequence[str]) -> TrainCLI:
    """The trainer, method and data that the arguments ask for, before anything is written.

    Raises:
        InputError: settings of which no run can be made.
    """
    load_public_classes()
    try:
        with also_from_here():
            return TrainCLI(
                Method,
                TrainingData,
                subclass_mode_model=True,
                subclass_mode_data=True,
                run=False,
                seed_everything_default=0,
                save_config_callback=None,
                trainer_class=Trainer,
                trainer_defaults=RECIPE,
                auto_configure_optimizers=False,
                args=prepared(args),
            )
    except UNFIT as error:
        found = input_error(error) or users_bug(error)
        if found:
            # Without the wrapping of jsonargparse.
            raise found  # noqa: B904
        line = " ".join(str(error).split())
        raise InputError(f"Cannot build a run from these settings: {line}") from error


class TrainParser(LightningArgumentParser, OneLineParser):
    """Lightning's parser with one-line errors."""


class TrainCLI(LightningCLI):
    """Lightning's command line with a run folder and an evaluation."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """See `LightningCLI.init_parser`."""
        parser = TrainParser(**{**kwargs, "allow_abbrev": False})
        parser.add_argument("-c", "--config", action="config", help="YAML file with any of these.")
        parser.add_argument("--help-all", action="help", help="List all settings and exit.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Lightning warns of arguments that are not the process's own; here they are given."""
        self.config = parser.parse_args(args)
        check_seed(int(self.config.seed_everything))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See `LightningCLI.add_arguments_to_parser`."""
        add_settings(parser)

    def before_instantiate_classes(self) -> None:
        """See `LightningCLI.before_instantiate_classes`.

        Raises:
            InputError: a value in place of a group of settings, which jsonargparse lets pass.
        """
        for group in ("trainer", "evaluation", "checkpoints"):
            if not hasattr(self.config[group], "as_dict"):
                raise InputError(
                    f"Expected settings by name under {group}, but got {self.config[group]!r}; see "
                    "--help."
                )
        for name in NOT_OURS:
            if self.config[name] is not None:
                raise InputError(
                    f"Expected no {name}: a method makes its own, from --model.lr, weight_decay, "
                    "betas and warmup. For another, override configure_optimizers in a method of "
                    "your own."
                )
        check_loggers(self.config.logger)
        wanted = self.config.trainer
        average = self.config.average
        self.average = TrajectoryAverage(Average.of(average)) if average else None
        self.trial = bool(wanted.fast_dev_run)
        self.saving = wanted.enable_checkpointing is not False
        self.folder = RunFolder(self.config.run, self._completed)
        self.finished = not self.trial and self._is_finished()

    def _is_finished(self) -> bool:
        """Whether the run is only to be evaluated; the first process refuses other folders."""
        text, overwrite = self.config_text(), self.config.overwrite
        if not leads():
            return not overwrite and self.folder.is_finished(text, self.config.resume)
        finished = self.folder.check(text, overwrite, self.config.resume)
        others = self.folder.others() if overwrite else []
        if others:
            say(f"{self.folder.path} keeps what no run wrote: {', '.join(others)}")
        return finished

    def _add_instantiators(self) -> None:
        """Nothing: Lightning's note hyperparameters, which no method keeps.

        They fail where a classifier takes no other argument than its class names.
        """

    def instantiate_classes(self) -> None:
        """See `LightningCLI.instantiate_classes`; a finished run needs no model and no data."""
        if not self.finished:
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Trainer that logs and saves in the run folder, as far as its own options allow."""
        self.stopping = Stopping()
        wanted, run = self.config_init.trainer, None if self.trial else self.folder.path
        progress = wanted.enable_progress_bar is not False
        averaging = [self.average] if self.average else []
        given = [*_listed(wanted.callbacks), self.stopping, *averaging]
        if wanted.log_every_n_steps is None:
            given.append(LogSteps())
        saved = self.folder.drop_replaced
        if wanted.precision == "auto" and self.config.resume:
            # Another machine goes on in the precision in which the run began.
            wanted.precision = self.folder.precision() or "auto"
        return super().instantiate_trainer(
            logger=loggers_of(run, wanted.logger, self.config.logger) if run else None,
            callbacks=callbacks_of(run, given, progress, self.saving),
            plugins=[*_listed(wanted.plugins), CheckpointFiles(saved)],
            **kwargs,
        )

    def _instantiate_trainer(
        self, config: dict[str, Any], callbacks: list[pl.Callback]
    ) -> pl.Trainer:
        """Lightning adds the checkpoints by steps, which not every run wants."""
        wanted = callbacks if self.saving and not self.trial else []
        return super()._instantiate_trainer(config, wanted)

    def check(self) -> None:
        """All that can be wrong, before anything is written or trained."""
        wanted = self.config.trainer
        for name in ("max_epochs", "max_steps", "limit_train_batches"):
            if wanted[name] == 0:
                raise InputError(
                    f"Expected at least one step of training, but got --trainer.{name} 0; cfmask "
                    "eval evaluates models as they are."
                )
        if wanted.accumulate_grad_batches < 1:
            raise InputError(
                "Expected --trainer.accumulate_grad_batches to be at least 1, but got "
                f"{wanted.accumulate_grad_batches}."
            )
        self.model.check(self.datamodule)
        check_comes_back(self.model.plain())
        asked = self.config.evaluation
        check_apart(self.folder.path, local_folder(asked.data_root), asked.shifts)
        if isinstance(self.datamodule, FolderData) and self.datamodule.undivided:
            check_apart(self.folder.path, self.datamodule.root)
        check_run(self.model.classifier, **asked.as_dict())
        self.datamodule.prepare(self.model.classifier.preprocess)

    def begin(self) -> None:
        """Write the starting point of a new run, or read that of one that goes on.

        Raises:
            InputError: the run cannot be read.
        """
        self.model.skip_nonfinite = self.config.skip_nonfinite
        self.checkpoint = self.folder.newest() if self.config.resume else None
        if self.checkpoint:
            if leads():
                check_beginning(self.folder.path, self.datamodule.identity())
            self.model.start_from(load_classifier(self.folder.path, PRETRAINED))
            step = read_checkpoint(self.checkpoint, mapped=True)["global_step"]
            for logger in self.trainer.loggers:
                if isinstance(logger, MetricsLogger):
                    logger.rewind(step)
            self.folder.keep_config(self.config_text())
            return
        asked = self.config.probe
        if self.model.wants_probe() if asked == "auto" else asked:
            self._probe()
        if leads():
            images = self.datamodule.identity()
            self.folder.start(self.config_text(), self.model.plain(), images)

    def _probe(self) -> None:
        """Fit the head, by all processes together if all of them are there."""
        strategy = self.trainer.strategy
        environment = getattr(strategy, "cluster_environment", None)
        if isinstance(environment, LightningEnvironment) and environment.local_rank():
            # The process that has started this one has fitted the head before.
            self.model.start_from(load_classifier(self.folder.path, PRETRAINED))
            return
        if leads():
            say("First the head is fitted to the features of the training images.")
        if environment is not None and not isinstance(environment, LightningEnvironment):
            strategy.setup_environment()
        self.model.probe(self.datamodule, strategy.root_device)

    def _completed(self, settings: dict[str, Any]) -> str:
        """YAML of an older version's settings, with defaults for those that it lacks."""
        return self.config_text(self.parser.parse_object(settings))

    def config_text(self, config: Any = None) -> str:
        """A configuration, by default the command's, as YAML without options that start a run."""
        config = (config or self.config).clone()
        for key in ("config", "overwrite", "resume", *NOT_OURS):
            config.pop(key, None)
        text: str = self.parser.dump(config, skip_link_targets=True, skip_unset=False)
        return text


def _plain(cli: TrainCLI) -> TrainCLI:
    """Plain fine-tuning under the same recipe, in a folder beside the run's."""
    run = cli.folder.path if cli.folder.path.name.strip(".") else cli.folder.path.resolve()
    options = {"model": PLAIN, "run": f"{run}-plain", "baseline": "false"}
    options |= {name: str(cli.config[name]).lower() for name in ("overwrite", "resume")}
    with TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        write_text(file, cli.config_text())
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return command_line(["--config", str(file), *words])


def _report(cli: TrainCLI, runs: Sequence[Path]) -> ShiftReport:
    asked = {**cli.config.evaluation.as_dict(), "out": str(cli.folder.path)}
    report = compare([str(run) for run in runs], **asked)
    if processes.rank() == 0:
        shown = ["accuracy", *cli.config.evaluation.metrics]
        print_report(report, cli.folder.path, shown)
    return report


def _finish(cli: TrainCLI) -> None:
    cli.folder.note_skipped(cli.datamodule.skipped)
    average = cli.average.classifier(cli.model) if cli.average else None
    tuned = cli.folder.finish(None if cli.saving else cli.model.plain(), average)
    cli.folder.drop_replaced()
    _gallery(cli, tuned, cli.folder)


def _try(cli: TrainCLI) -> None:
    """The few steps of Lightning's fast_dev_run, which leave nothing behind."""
    with as_input_errors(cli.trainer, cli.folder):
        cli.trainer.fit(cli.model, cli.datamodule)
    if leads():
        say(
            f"fast_dev_run: {cli.trainer.global_step} steps and a validation ended well; nothing "
            "is written."
        )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _gallery(cli: TrainCLI, tuned: Classifier, folder: RunFolder) -> None:
    """Picture of the tuned model on validation images, for methods that mask."""
    if isinstance(cli.model, MaskedDistillation):
        images, labels = first_of_each_class(cli.datamodule.val_set, ROWS)
        if len(labels) > 1:
            names = [tuned.class_names[k] for k in labels.tolist()]
            found = of_method(cli.model, tuned, images, labels)
            if found:
                draw(folder.path / f"{GALLERY}.png", found, names)
