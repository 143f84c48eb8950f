"""MetaShift's pickles, made up: converted as designed, and never executed."""

from __future__ import annotations

import collections
import pickle
import pickletools
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from support.digits_sets import NAMES
from support.imagenet_trees import Sees, paint

from cfmask import InputError, Request, evaluate, find_shifts
from cfmask.commands.main import main
from cfmask.shifts.metashift import convert

# Image 3 shows an ant and a bee; bee(hive) is small.
SUBSETS = {
    "ant(soft sofa)": {"1", "2", "3"},
    "ant(grass)": {"2", "4"},
    "bee(grass)": {"3", "5", "6"},
    "bee(hive)": {"6"},
    "cow(grass)": {"9"},
}


def written(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def home(tmp_path) -> Path:
    content = collections.defaultdict(set, SUBSETS)
    written(tmp_path / "subsets.pkl", content)
    # Image 4 is painted as another class.
    for number, k in {"1": 0, "2": 0, "3": 1, "4": 1, "5": 1, "6": 1}.items():
        paint(tmp_path / "visual genome" / f"{number}.jpg", k)
    return tmp_path


def listed(home: Path, **changed: object):
    given = {"source": home / "subsets.pkl", "images": home / "visual genome", "least": 1}
    return convert(**{**given, "classes": ["ant", "bee"], "out": home / "scenes/meta", **changed})


def test_the_command_makes_a_set_that_scores_as_designed(home, capsys, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    (line,) = re.findall(r"^cfmask (contexts .*)$", page, re.M)
    monkeypatch.chdir(home)
    (home / "full-candidate-subsets.pkl").symlink_to("subsets.pkl")
    words = line.replace("allImages", "'visual genome'").replace("cat,dog", "ant,bee")
    main([*shlex.split(words.replace("scenes/", "'my scenes'/")), "--least=2"])
    told, out = capsys.readouterr().out, home / "my scenes" / "metashift"
    assert "6 images in 3 contexts" in told and "1 images of several" in told
    assert sorted(path.name for path in out.iterdir()) == ["metadata.csv"]
    (shift,) = find_shifts(["contexts"], Request(home / "my scenes", NAMES))
    report = evaluate({"m": Sees()}, [shift])
    groups = report.details["m"]["contexts/metashift"]["groups"]
    assert dict(zip(groups["names"], zip(groups["correct"], groups["total"]))) == {
        "ant(grass)": (1, 2),
        "ant(soft sofa)": (2, 2),
        "bee(grass)": (2, 2),
    }
    assert report.of("worst_group")[0].note == "ant(grass)"
    # List and images together may be moved.
    (home / "moved").mkdir()
    for name in ("my scenes", "visual genome"):
        (home / name).rename(home / "moved" / name)
    find_shifts(["contexts"], Request(home / "moved" / "my scenes", NAMES))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(home, protocol):
    written(home / "subsets.pkl", collections.defaultdict(set, SUBSETS), protocol)
    done = listed(home)
    assert done.contexts == {"ant(grass)": 2, "ant(soft sofa)": 2, "bee(grass)": 2, "bee(hive)": 1}
    assert (done.ambiguous, done.absent) == (1, 0)


def test_groups_by_image_tell_of_the_images_that_are_there(home):
    groups = {"1": ["ant(indoor)"], "2": ["ant(outdoor)"], "5": ["bee(indoor)"], "77": ["bee(out)"]}
    done = listed(home, source=written(home / "imageID_to_group.pkl", groups))
    assert done.contexts == {"ant(indoor)": 1, "ant(outdoor)": 1, "bee(indoor)": 1}
    assert done.absent == 1


class Runs:
    def __init__(self, call: object, *given: object) -> None:
        self.made = call, given

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", [Path.touch, eval, exec, getattr, __import__, np.zeros, range])
def test_a_pickle_that_holds_more_is_refused_by_name_and_not_run(home, call, protocol):
    given = {Path.touch: [Path(home / "ran")], getattr: [{}, "pop"], np.zeros: [3], range: [9]}
    run = f"open({str(home / 'ran')!r}, 'w')"
    bad = {"ant(sofa)": Runs(call, *given.get(call, [run]))}
    written(home / "subsets.pkl", bad, protocol)
    with pytest.raises(InputError, match="Refused") as caught:
        listed(home)
    named = [arg for _, arg, _ in pickletools.genops((home / "subsets.pkl").read_bytes()) if arg]
    told = str(caught.value)
    assert "\n" not in told and "it names" in told
    name = told.partition("it names ")[2].partition(",")[0].rpartition(".")[2]
    assert any(name in str(arg) for arg in named)
    assert not (home / "ran").exists() and not (home / "scenes").exists()


def test_a_pickle_that_would_fill_the_memory_is_refused(home):
    (home / "subsets.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match="numbers an object 2147483647"):
        listed(home)


def test_damaged_pickles_are_refused_in_one_line(home):
    rng, whole = random.Random(0), (home / "subsets.pkl").read_bytes()
    for k in range(150):
        broken = bytearray(whole)
        for _ in range(3):
            broken[rng.randrange(11, len(whole))] = rng.randrange(32, 127)
        (home / "subsets.pkl").write_bytes(broken[: rng.choice([len(whole), 40])])
        try:
            listed(home, out=home / f"out {k}")
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"classes": ["ant", "wasp"]}, "wasp"),
        ({"classes": ["ant", "ant"]}, "each once"),
        ({"classes": []}, "Expected classes"),
        ({"classes": ["cow"]}, "1 are not there, such as 9.jpg"),
        ({"classes": ["ant", "bee", "cow"]}, "allow_incomplete"),
        ({"least": 5}, "at least 5 images, but the largest has 2"),
    ],
)
def test_what_cannot_be_listed_is_refused_in_one_line(home, changed, told):
    with pytest.raises(InputError, match="Expected") as caught:
        listed(home, **changed)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not (home / "scenes").exists()


@pytest.mark.parametrize(
    "content",
    [[], {}, {"a": 3}, {3: ["ant(x)"]}, {"ant(../x)": ["1"]}, {"ant(x)": ["../1"]}, {"ant": ["1"]}],
)
def test_other_contents_are_refused(home, content):
    with pytest.raises(InputError, match="Expected"):
        listed(home, source=written(home / "other.pkl", content))


def test_incomplete_images_and_a_list_that_is_there(home):
    done = listed(home, classes=["ant", "bee", "cow"], allow_incomplete=True)
    assert done.absent == 1 and "cow(grass)" not in done.contexts
    with pytest.raises(InputError, match="is there"):
        listed(home)
