"""Settings of cfmask train beside those of method, data and trainer."""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse import SUPPRESS
from pytorch_lightning.cli import LightningArgumentParser

from cfmask.comparison.compare import compare
from cfmask.data.datamodule import TrainingData
from cfmask.runs.resume import StepCheckpoints

# Lightning offers them to methods that bring none; runs of version 0.1 name them as null.
NOT_OURS = ("optimizer", "lr_scheduler")


def add_settings(parser: LightningArgumentParser) -> None:
    """Give the parser of Lightning's command line the settings of a run and its evaluation."""
    parser.add_argument("--run", type=str, default="runs/run", help="folder of the run")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace another run there")
    parser.add_argument(
        "--probe",
        type=bool | Literal["auto"],
        default="auto",
        help="fit the head to the frozen encoder's features first; auto does so for a linear "
        "head that nothing has fitted",
    )
    parser.add_argument(
        "--resume",
        type=bool,
        default=False,
        help="go on from the newest checkpoint of this run, or begin if there is none",
    )
    parser.add_argument(
        "--baseline",
        type=bool,
        default=False,
        help="also fine-tune plainly under the same recipe, in a folder of its own (RUN-plain), "
        "and report both; false for a method that is plain itself",
    )
    parser.add_argument(
        "--average",
        type=str | None,
        default=None,
        help="also average the weights of all steps, the start among them: ema, in which what is "
        "older counts less (ema:0.9998 for another decay than 0.999), or beta, in which start and "
        "end count most (beta:0.1 for another shape than 0.5); evaluated beside the tuned ones",
    )
    parser.add_argument(
        "--skip_nonfinite",
        type=int,
        default=0,
        help="steps with a loss or gradient that is not finite to leave out before the run "
        "stops; 0 stops at the first",
    )
    parser.add_argument(
        "--logger",
        type=list[str],
        default=["tensorboard", "csv"],
        help="what metrics are written for: csv, tensorboard, wandb, mlflow",
    )
    for name in NOT_OURS:
        parser.add_argument(f"--{name}", type=Any, default=None, help=SUPPRESS)
    parser.add_lightning_class_args(StepCheckpoints, "checkpoints")
    parser.link_arguments("run", "checkpoints.run")
    parser.add_function_arguments(compare, "evaluation", skip={"what", "out", "trust"})
    for model in ("classifier", "teacher"):
        parser.link_arguments(
            "data",
            f"model.init_args.{model}.init_args.class_names",
            compute_fn=_class_names,
            apply_on="instantiate",
        )


def _class_names(data: TrainingData) -> list[str]:
    return list(data.class_names)
