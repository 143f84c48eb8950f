"""ImageNet and its shift sets, for classifiers of its 1000 classes in sorted WordNet order.

A label is the number of a head class; `Shift.accepts` maps labels that a set defines itself to
head classes. Labels come from the names of folders and files, never from the order of a listing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cfmask.shift import Size
from cfmask.shifts import imagenet_val
from cfmask.shifts.imagenet_val import (
    AS_STORED,
    of_val,
    val,
    val_of_subset,
    val_with_real_labels,
)
from cfmask.shifts.objectnet import SOURCE, objectnet
from cfmask.shifts.origin import Origin
from cfmask.shifts.pictures import Contents
from cfmask.wordnet import subset, synsets


def by_wordnet_id(folder: Path, root: Path, restriction: str = "") -> Contents:
    """Folders by WordNet id, of all classes or of a `subset`, to which the argmax is restricted."""
    classes = subset(restriction) if restriction else None
    labels = {synsets()[k]: k for k in classes or range(len(synsets()))}
    what = f"WordNet ids of its {len(labels)} classes"
    note = f"label = WordNet id that names the folder; {AS_STORED}"
    return Contents.of_folders(folder, labels, what, note, classes=classes)


def by_number(folder: Path, root: Path) -> Contents:
    """ImageNet-V2, whose folders are numbered; a sorted listing has 10 before 2."""
    labels = {str(k): k for k in range(len(synsets()))}
    note = f"label = number that names the folder; {AS_STORED}"
    return Contents.of_folders(folder, labels, "numbers 0 to 999", note)


def _v2(title: str, name: str, on_request: bool) -> Origin:
    return Origin(
        title,
        (f"imagenetv2-{name}-format-val", f"ImageNetV2-{name}", f"imagenetv2-{name}"),
        Size(10_000, 1000),
        "https://github.com/modestyachts/ImageNetV2",
        "images from Flickr under their own licences, to be used as ImageNet's",
        by_number,
        # Beside the first, the others would count V2 more than once.
        on_request=on_request,
        each=10,
    )


def _of_subset(title: str, name: str) -> Origin:
    read = partial(val_of_subset, name=name)
    return of_val(title, Size(10_000, 200), read, in_distribution=True, beside=name)


IMAGENET: dict[str, Origin] = {
    "val": Origin(
        "ImageNet val",
        imagenet_val.PLACES,
        Size(50_000, 1000),
        imagenet_val.SOURCE,
        imagenet_val.LICENCE,
        val,
        in_distribution=True,
        each=50,
    ),
    "v2": _v2("ImageNet-V2 matched-frequency", "matched-frequency", False),
    "r": Origin(
        "ImageNet-R",
        ("imagenet-r", "ImageNet-R"),
        Size(30_000, 200),
        "https://github.com/hendrycks/imagenet-r",
        "not stated by its authors for the images",
        partial(by_wordnet_id, restriction="r"),
    ),
    "sketch": Origin(
        "ImageNet-Sketch",
        ("imagenet-sketch/sketch", "imagenet-sketch", "ImageNet-Sketch", "sketch"),
        Size(50_889, 1000),
        "https://github.com/HaohanWang/ImageNet-Sketch",
        "MIT for the repository, not stated for the images",
        by_wordnet_id,
    ),
    "a": Origin(
        "ImageNet-A",
        ("imagenet-a", "ImageNet-A"),
        Size(7500, 200),
        "https://github.com/hendrycks/natural-adv-examples",
        "MIT for the repository, not stated for the images",
        partial(by_wordnet_id, restriction="a"),
    ),
    "objectnet": Origin(
        "ObjectNet",
        ("objectnet-1.0", "objectnet", "ObjectNet"),
        Size(18_574, 113),
        SOURCE,
        "CC BY 4.0 with two clauses: never tune parameters on it; on the web only with its border",
        objectnet,
    ),
    "real": of_val(
        "ImageNet val with ReaL labels",
        Size(46_837, 1000),
        val_with_real_labels,
        "https://github.com/google-research/reassessed-imagenet",
        f"labels Apache-2.0; images: {imagenet_val.LICENCE}",
        in_distribution=True,
        on_request=True,
    ),
    "val on R classes": _of_subset("ImageNet val, classes of R", "r"),
    "val on A classes": _of_subset("ImageNet val, classes of A", "a"),
    "v2-threshold0.7": _v2("ImageNet-V2 threshold 0.7", "threshold0.7", True),
    "v2-top-images": _v2("ImageNet-V2 top images", "top-images", True),
}
