"""Dollar Street: household objects, grouped by the household's income or region of the world."""

from __future__ import annotations

import ast
import csv
from bisect import bisect_left
from functools import partial
from pathlib import Path

from cfmask.errors import InputError
from cfmask.shift import Size
from cfmask.shifts.imagenet_val import AS_STORED
from cfmask.shifts.origin import Origin, several_classes
from cfmask.shifts.pictures import Contents
from cfmask.wordnet import synsets

LIST = "images_v2_imagenet_test.csv"
SOURCE = "https://www.kaggle.com/datasets/mlcommons/the-dollar-street-dataset"
# Quartiles of the monthly income in dollars, as a public evaluation of the set has them.
QUARTILES = (200, 684, 1997)
GROUPS = ("income to 200", "income 200 to 684", "income 684 to 1997", "income above 1997")


def dollar_street(folder: Path, root: Path, by_region: bool = False) -> Contents:
    """The test images, right if the argmax is one of their ImageNet classes (Rojas et al., 2022).

    Groups are `GROUPS`, or the values of `region.id`, as of "Does progress on object recognition
    benchmarks improve real-world generalization?" (arXiv 2307.13136).

    Raises:
        InputError: a damaged list, or an image of it that is not there.
    """
    try:
        with (folder / LIST).open(newline="", encoding="utf-8") as file:
            rows = [_row(row, by_region) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
        raise InputError(f"Cannot read {folder / LIST}: {error!r:.200}.") from error
    absent = [path for path, _, _ in rows if not (folder / path).is_file()]
    if absent:
        raise InputError(
            f"Expected the {len(rows)} images of {folder / LIST}, but {len(absent)} are not there, "
            f"such as {absent[0]}; complete the set from {SOURCE}."
        )
    labels, accepts = several_classes([classes for _, classes, _ in rows])
    groups = [group for _, _, group in rows]
    names = tuple(sorted(set(groups))) if by_region else GROUPS
    return Contents.of(
        [(str(folder / path), label) for (path, _, _), label in zip(rows, labels)],
        f"right if the argmax among all classes is one of those of {LIST}; groups: "
        f"{'region.id' if by_region else 'quartiles of income'}; {AS_STORED}",
        accepts=accepts,
        groups=tuple(map(names.index, groups)),
        group_names=names,
    )


def _row(row: dict[str, str], by_region: bool) -> tuple[str, tuple[int, ...], str]:
    """Path, head classes and group of a line of the list."""
    classes = tuple(int(k) for k in ast.literal_eval(row["imagenet_sysnet_id"]))
    if not classes or not set(classes) <= set(range(len(synsets()))):
        raise ValueError(f"classes {classes} are not among 1000")
    group = row["region.id"] if by_region else GROUPS[bisect_left(QUARTILES, float(row["income"]))]
    if not group:
        raise ValueError(f"{row['imageRelPath']} has no group")
    return row["imageRelPath"], classes, group


def _origin(title: str, by_region: bool) -> Origin:
    return Origin(
        title,
        (
            "dollarstreet/dataset_dollarstreet",
            "dollar_street/dataset_dollarstreet",
            "dataset_dollarstreet",
            "dollarstreet",
        ),
        # Its authors state the number of images, not that of classes.
        Size(4308, 0),
        SOURCE,
        "stated on its page",
        partial(dollar_street, by_region=by_region),
        # The same images once more.
        on_request=by_region,
    )


DOLLAR_STREET = {
    "dollarstreet": _origin("Dollar Street", False),
    "regions": _origin("Dollar Street by region", True),
}
