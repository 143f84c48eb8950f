"""Comparison: models by name and sets by name -> a report in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.comparison.evaluate import checked_reference, report_of
from cfmask.comparison.examples import Explainer, gallery
from cfmask.comparison.further_rows import check_rows, with_crop_selection, with_descriptions
from cfmask.comparison.joining import check_protocol, joined
from cfmask.comparison.seeds import families, seed_groups
from cfmask.comparison.sources import Found, adapted, is_run, labels_of, models_of, move, short_name
from cfmask.comparison.task_heads import tasks_of, text_tower_of, towers_of
from cfmask.decoding import Decoder
from cfmask.errors import InputError, at_least, unknown
from cfmask.evaluation.fronts import gaps_against
from cfmask.evaluation.own_metrics import own_metrics
from cfmask.evaluation.protocol import protocol_of
from cfmask.evaluation.spreads import spreads_of
from cfmask.files import check_out, read_text
from cfmask.inference.batch_statistics import Shuffle, check_alpha, check_norms
from cfmask.inference.inference import Model, classes_of
from cfmask.inference.predictions import parquet
from cfmask.inference.readable import Unreadable
from cfmask.inference.saved_answers import SavedAnswers
from cfmask.inference.settings import Settings
from cfmask.inference.viewing import widened
from cfmask.inference.wise import alphas_of
from cfmask.precision import Precision, settled
from cfmask.reporting.publish import publish
from cfmask.reporting.report import ShiftReport
from cfmask.runs.marker import held_out
from cfmask.runs.parts import masking_of
from cfmask.runs.record import run_facts, training_curves
from cfmask.runs.run_folder import CONFIG, RunFolder
from cfmask.shift import HOLDOUT, Request, Shift, check_apart, local_folder
from cfmask.shifts.catalogue import find_shifts
from cfmask.shifts.published import PUBLISHED
from cfmask.shifts.tasks import Task, find_tasks, protocol_of_tasks
from cfmask.views.known_views import views_of

REPORT = "report.json"
KEPT = "answers"
OUT = Path("runs") / "evaluation"

# Fields of `Evaluation` that are `Settings` of the same name.
READING = ("batch_size", "workers", "precision", "decoder", "unreadable", "fit")


@dataclass(frozen=True)
class Evaluation:
    """How `compare` evaluates; the config of a run holds it under `evaluation`.

    Attributes:
        wise: WiSE-FT weights in [0, 1] of run folders, each a row: `0.5`, `0,0.1,...,1`. The
            report marks the one with the best accuracy on the in-distribution set.
        fit: what effective robustness is measured from: `builtin` lines through ImageNet models, a
            line through the `models` of this report, `none`, or a CSV file.
        images: number of images of each built-in set.
        seed: seed of the built-in sets.
        batch_size: images at a time.
        workers: processes that decode images.
        precision: precision of the encoders; auto is bf16 where the machine has instructions for
            it, else fp32, and the protocol says which it was.
        decoder: decoder of image files: "fast", or "pil" for exactly the pixels of Pillow.
        allow_incomplete: evaluate sets whose number of images is not the published one; the
            report says so.
        unreadable: `stop` at an image that cannot be read, or count it as a `wrong` answer; the
            report then names it.
        predictions: write the answers to all images, with their logits, as Parquet files.
        reuse: use answers that an earlier or interrupted evaluation has left in the folder.
        pictures: number of images of each set in report.html, on which the starting point and the
            tuned model (or the first two models) differ.
        metrics: import paths of metrics of one's own (`my_module.MARGIN`), each a `Metric` or a
            function of `Judged`.
        trust: import what models and runs name and what is not this package's.
        unknown: folders, or import paths of data sets, of images of classes that the models lack.
        corrupt: corruptions to make of the in-distribution set, such as contrast; `all` for all.
        views: further versions of each image that the models are shown: `translation` (the crop
            moved by a pixel; `translation/4` by 4), `structure` (patches shuffled), or import paths
            of one's own.
        descriptions: JSON file {class: [descriptor, …]}, or `digits`: one more row for each model
            with a text tower, with a zero-shot head from these descriptions.
        normalise: L2-normalise the mean of a class's descriptions; false as in the released code.
        against: fronts with which alone the others are compared, such as a run or the common name
            of runs of several seeds; each two are, if none is named.
        crop_selection: pixels by which each picture may move its own crop: one more row for each
            model; see `CropSelection`.
        holdout: share of the images of a data_root without train/ that is the set `id`; a run
            brings the images that it has held out; 0.2 by default.
        tasks: other tasks for the image towers, with the text tower as it was: folders of class
            folders, or `digits`; each model's accuracy on them, and its change by tuning.
        batch_statistics: weight in [0, 1] of the stored statistics, the rest from the batch of test
            images: one more row for each model, which must have batch norms.

    Raises:
        InputError: numbers that are too small.
    """

    wise: list[float] | str = "0.5"
    fit: str = "builtin"
    images: int = 1000
    seed: int = 0
    batch_size: int = 250
    workers: int = 0
    precision: Precision = "fp32"
    decoder: Decoder = "fast"
    allow_incomplete: bool = False
    unreadable: Unreadable = "stop"
    predictions: bool = False
    reuse: bool = True
    pictures: int = 4
    metrics: list[str] = field(default_factory=list)
    trust: bool = False
    holdout: float = HOLDOUT
    unknown: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    batch_statistics: float | None = None
    descriptions: str | None = None
    normalise: bool = True
    against: list[str] = field(default_factory=list)
    crop_selection: int | None = None

    def __post_init__(self) -> None:
        at_least(1, self.images, "image of each built-in set (images)")
        at_least(0, self.pictures, "pictures")
        check_alpha(self.batch_statistics)

    def settings(self, folder: Path) -> Settings:
        """How sets are read, with what is kept in the folder of a report."""
        return Settings(
            **{name: getattr(self, name) for name in READING},
            store=folder / KEPT if self.reuse else None,
            predictions=folder / "predictions" if self.predictions else None,
            progress=True,
            metrics=own_metrics(self.metrics),
            views=views_of(self.views),
        )

    def request(
        self, root: Path | None, names: tuple[str, ...], held_out: tuple[str, ...]
    ) -> Request:
        """What is asked of the families of sets, for classes of these names."""
        drawn = self.images, self.seed, self.allow_incomplete
        added = tuple(self.unknown), tuple(self.corrupt)
        return Request(root, names, *drawn, "", self.holdout, held_out, *added)


def compare(
    what: list[str],
    out: str | None = None,
    shifts: list[str] = ["digits"],  # noqa: B006
    data_root: str | None = None,
    **how: Any,
) -> ShiftReport:
    """Evaluate models on sets; write the report in all formats and a picture.

    Args:
        what: models, each a run folder, a .safetensors or .ckpt file, `open_clip:NAME/TAG` or
            `timm:NAME`; or logits or predictions of a model that cannot be loaded here, see
            `SavedAnswers`; or the report.json of models that were evaluated by the same protocol.
        out: folder of the report; the run's own for one run folder, else `runs/evaluation`.
        shifts: families of shift sets (`digits`, `folders`, `imagenet`), single sets
            (`digits/sketch`, `imagenet/objectnet`), or the import path of what makes sets of one's
            own (`my_module.my_sets`).
        data_root: folder with the images, for sets that are not built in.
        **how: see `Evaluation`.

    Returns:
        The report, in every process; the first one has written it.

    Raises:
        InputError: what cannot be found, read or compared.
    """
    asked, folder = Evaluation(**how), report_folder(what, out)
    check_out(folder)
    earlier = {name: ShiftReport.load(Path(name)) for name in what if _is_report(name)}
    sources = [name for name in what if name not in earlier]
    if not sources:
        raise InputError("Expected at least one model to evaluate, but got none.")
    # What a run was evaluated on need not be read again.
    kept = tuple(Path(name) / KEPT for name in sources if is_run(name))
    settings = replace(asked.settings(folder), others=kept)
    root, alphas = local_folder(data_root), alphas_of(asked.wise)
    check_apart(folder, root, shifts)
    for task in asked.tasks:
        check_apart(folder, Path(task))
    rows = models_of(sources, alphas, lambda: labels_of(shifts, root), asked.trust)
    plain = rows
    rows = with_descriptions(rows, asked.descriptions, asked.normalise, asked.trust)
    rows = with_crop_selection(rows, asked.crop_selection)
    move(rows.models)
    rows = adapted(rows, asked.batch_statistics, Shuffle(asked.batch_size, asked.seed))
    tasks = find_tasks(asked.tasks, asked.images, asked.seed)
    towers = towers_of(plain.models, asked.trust) if tasks else {}
    # Read before time is spent: a file of a run may be damaged.
    runs = {short_name(name, sources): Path(name) for name in sources if is_run(name)}
    found = _sets(shifts, asked.request(root, (), _held_out(runs)), rows.models)
    _check_writable(asked, earlier, found, rows.models, tasks)
    told, curves = _told(runs, sources, rows.models)
    known = families(runs)
    _check_fronts(asked.against, {name for name, _ in known.values()})
    report = report_of(rows.models, found, settings, rows.starts, _series(known, rows.runs))
    report.rows.extend(tasks_of(plain.models, towers, tasks, plain.starts, settings))
    report.protocol.update(protocol_of_tasks(tasks))
    if asked.against:
        report.gaps[:] = gaps_against(report.gaps, asked.against)
    report.spreads.extend(spreads_of(report.rows, seed_groups(known, rows.runs), rows.starts))
    for path, old in earlier.items():
        report = joined(report, old, path)
    report.run.update(told)
    report.training.update(curves)
    processes.from_first(lambda: _write(report, folder, rows, found, asked))
    return report


def check_run(
    classifier: Classifier, shifts: Sequence[str], data_root: str | None, **how: Any
) -> None:
    """Refuse what `compare` would refuse of a run, before the run is trained.

    Args:
        classifier: that will be tuned.
        shifts: see `compare`.
        data_root: see `compare`.
        **how: see `Evaluation`.

    Raises:
        InputError: what cannot be found, read or compared.
    """
    asked = Evaluation(**how)
    widened(classifier.preprocess, asked.settings(Path()).views)
    if find_tasks(asked.tasks, asked.images, asked.seed):
        text_tower_of(classifier.name, classifier, asked.trust)
    if asked.batch_statistics is not None:
        check_norms({classifier.name: classifier})
    check_rows(classifier, asked.descriptions, asked.crop_selection)
    between = [alpha for alpha in alphas_of(asked.wise) if 0 < alpha < 1]
    request = asked.request(local_folder(data_root), classifier.class_names, ())
    found = find_shifts(shifts, request)
    checked_reference(2 + len(between), found, asked.fit)
    if asked.predictions:
        parquet()


def _check_writable(
    asked: Evaluation,
    earlier: Mapping[str, ShiftReport],
    shifts: Sequence[Shift],
    models: Mapping[str, Model],
    tasks: Sequence[Task],
) -> None:
    """Refuse answers that cannot be written, and reports that cannot be joined."""
    if asked.predictions:
        parquet()
    read = not all(isinstance(model, SavedAnswers) for model in models.values())
    used = settled(asked.precision, processes.device().type) if read else None
    rules = protocol_of({}, shifts, used, asked.decoder) | protocol_of_tasks(tasks)
    for path, old in earlier.items():
        check_protocol(rules, old, path)


def _check_fronts(asked: Sequence[str], known: Set[str]) -> None:
    for name in asked:
        if name not in known:
            raise unknown("front to compare with", name, known)


def _told(
    runs: Mapping[str, Path], sources: Sequence[str], models: Mapping[str, Model]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a report says of its runs and of saved answers, and the curves of training."""
    configs = {f"config of {name}": read_text(run / CONFIG) for name, run in runs.items()}
    facts = {name: run_facts(run) for name, run in runs.items()}
    told: dict[str, Any] = {**configs, "runs": facts}
    skipped = {name: len(RunFolder(name).skipped()) for name in sources if is_run(name)}
    if any(skipped.values()):
        told["skipped_training_images"] = {name: n for name, n in skipped.items() if n}
    saved = [name for name, model in models.items() if isinstance(model, SavedAnswers)]
    if saved:
        lacks = "pictures on which they differ, and, of predictions alone, figures of logits"
        told["left out"] = f"of {', '.join(saved)}: {lacks}"
    return told, {name: training_curves(run) for name, run in runs.items()}


def _write(
    report: ShiftReport, folder: Path, rows: Found, shifts: Sequence[Shift], asked: Evaluation
) -> None:
    report.save(folder / REPORT)
    report.plot_trade_off(folder / "trade_off.png")
    report.plot_fronts(folder / "fronts.png")
    explainers = _explainers(rows, asked.trust)
    publish(report, folder, gallery(rows.models, shifts, asked.pictures, explainers))


def _series(
    known: Mapping[str, tuple[str, str]], rows: Mapping[str, str]
) -> dict[str, tuple[str, str]]:
    """Row of a tuned model -> common name and seed of its run."""
    names = {row: row.rpartition(": ")[0] for row in rows}
    return {row: known[name] for row, name in names.items() if name in known}


def _held_out(runs: Mapping[str, Path]) -> tuple[str, ...]:
    """The test images that all runs have held out of training; none if no run has any."""
    lists = {name: tuple(held_out(run)) for name, run in runs.items()}
    some = {paths: name for name, paths in lists.items() if paths}
    if len(some) > 1:
        raise InputError(
            f"Expected runs that held out the same images, but {' and '.join(some.values())} did "
            "not; evaluate them apart."
        )
    return next(iter(some), ())


def _explainers(rows: Found, trust: bool) -> dict[str, Explainer]:
    """Relevance of the rows whose run was configured with one."""
    found: dict[str, Explainer] = {}
    for row, run in rows.runs.items():
        try:
            relevance = masking_of(RunFolder(run), trust).relevance
        # A report leaves out what is not here or not trusted, and says so.
        except InputError as error:
            found[row] = error
        else:
            found |= {row: relevance} if relevance is not None else {}
    return found


def report_folder(what: Sequence[str], out: str | None) -> Path:
    """Where `compare` writes its report."""
    sources = [name for name in what if not _is_report(name)]
    single = len(sources) == 1 and is_run(sources[0])
    return Path(out) if out else Path(sources[0]) if single else OUT


def _is_report(what: str) -> bool:
    return Path(what).suffix == ".json"


def _sets(shifts: Sequence[str], request: Request, models: Mapping[str, Model]) -> list[Shift]:
    """The sets, for classifiers whose labels mean the same.

    The families of ImageNet check the number and order of the classes, whatever their names.
    """
    classes = {classes_of(model): name for name, model in models.items()}
    (names, first), *others = classes.items()
    own = [family.partition("/")[0] for family in shifts]
    for other, model in others:
        if len(other) != len(names) or not set(own) <= set(PUBLISHED):
            raise InputError(
                f"Expected models of the same classes, but {first} has {len(names)} "
                f"({', '.join(names[:3])}, …) and {model} has {len(other)} "
                f"({', '.join(other[:3])}, …); evaluate them apart."
            )
        find_shifts(shifts, replace(request, class_names=other))
    return find_shifts(shifts, replace(request, class_names=names))
