"""The Semantic Shift Benchmark: classes of ImageNet-21K that ImageNet's 1000 lack, near and far.

Lists of WordNet ids as plain text say which they are; `near` is what its authors call hard, `far`
what they call easy. Images are those of ImageNet-21K-P's validation folders.

Source: https://github.com/sgvaze/osr_closed_set_all_you_need (Vaze et al. 2022, arXiv 2110.06207).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cfmask.errors import InputError, listed, unknown
from cfmask.files import read_text
from cfmask.shift import UNKNOWN, Request, Shift
from cfmask.shifts.pictures import Contents, pictures
from cfmask.shifts.published import check_classes
from cfmask.shifts.unknown import refuse_known

SETS = ("near", "far")
IMAGES = (
    *("imagenet21k-p/val", "imagenet21k_p/val", "imagenet-21k-p/val"),
    *("imagenet21k_resized/imagenet21k_val", "imagenet21k_val"),
)
SOURCE = "https://github.com/sgvaze/osr_closed_set_all_you_need"


def ssb_shifts(request: Request) -> list[Shift]:
    """The sets of unknown classes whose list `data_root/ssb/near.txt` or `far.txt` is there.

    Raises:
        InputError: no list, no images, a classifier of other classes, a line that is no WordNet id,
            an id of a known class, or one without images.
    """
    check_classes(request.class_names)
    root = request.data_root or Path("DATA_ROOT")
    wanted = (request.only,) if request.only else SETS
    if not set(wanted) <= set(SETS):
        raise unknown("shift", f"ssb/{request.only}", [f"ssb/{name}" for name in SETS])
    lists = [root / "ssb" / f"{name}.txt" for name in wanted]
    there = [file for file in lists if file.is_file()]
    if not there:
        raise InputError(
            f"Expected WordNet ids, one a line, in {' or '.join(map(str, lists))}, but there is "
            f"none; take them from the open-set splits of {SOURCE}."
        )
    place = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    if place is None:
        raise InputError(
            f"Expected the validation images of ImageNet-21K-P in {root}, but none of "
            f"{listed(IMAGES, 5)} is there."
        )
    return [_set(file, place, request.class_names) for file in there]


def _set(file: Path, place: Path, names: Sequence[str]) -> Shift:
    ids = read_text(file).split()
    odd = [word for word in ids if not re.fullmatch(r"n\d{8}", word)]
    if odd or not ids:
        raise InputError(
            f"Expected WordNet ids such as n01443537, one a line, in {file}, but got "
            f"{repr(odd[0])[:40] if odd else 'none'}."
        )
    refuse_known(ids, names, str(file))
    lacking = [name for name in ids if not (place / name).is_dir()]
    if lacking:
        raise InputError(
            f"Expected a folder of images in {place} for each of the {len(ids)} classes of {file}, "
            f"but {len(lacking)} have none: {listed(lacking, 3)}; complete the images."
        )
    samples = [(path, UNKNOWN) for name in dict.fromkeys(ids) for path in pictures(place / name)]
    if not samples:
        raise InputError(f"Expected images in the folders of {place}, but there are none.")
    note = f"{len(set(ids))} classes that ImageNet's 1000 lack, by {file.name}; as stored"
    made = Contents.of(samples, note, unknown=True, source=SOURCE)
    return replace(made, name=file.stem)
