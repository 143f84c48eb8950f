"""Combinations: figures that reports make of several sets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Combination:
    """A figure made of several sets: constant + sum of weight · accuracy.

    Attributes:
        weights: weight by qualified name of the set.
        constant: what is added.
    """

    weights: Mapping[str, float]
    constant: float = 0.0


def mean_of(*sets: str) -> Combination:
    """The unweighted mean of sets."""
    return Combination(dict.fromkeys(sets, 1 / len(sets)))


def drop(clean: str, shifted: str) -> Combination:
    """Accuracy on a set minus that on its shifted counterpart."""
    return Combination({clean: 1.0, shifted: -1.0})


# Error of AlexNet on each corruption of ImageNet-C, mean of the five severities: what mCE is
# normalised by (Hendrycks & Dietterich, 2019; their table gives them in whole per cents).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
SEVERITIES = (1, 2, 3, 4, 5)
# Families of the 75 sets of ImageNet-C, stored or made.
COLLECTIONS = ("imagenet-c", "imagenet-c-made")


def corruption_sets(family: str) -> list[str]:
    """Qualified names of the 75 sets of one of the `COLLECTIONS`."""
    return [f"{family}/{name}-{severity}" for name in ALEXNET_ERRORS for severity in SEVERITIES]


def mean_corruption_error(family: str) -> Combination:
    """The mCE of one of the `COLLECTIONS`, as a fraction; lower is better.

    That is the mean over corruptions of the error divided by AlexNet's.
    """
    shares = [1 / error / len(ALEXNET_ERRORS) for error in ALEXNET_ERRORS.values()]
    each = [-share / len(SEVERITIES) for share in shares for _ in SEVERITIES]
    return Combination(dict(zip(corruption_sets(family), each)), sum(shares))


IMAGENET_FOUR = ("imagenet/v2", "imagenet/r", "imagenet/sketch", "imagenet/a")

# Shown by reports beside the sets, each if all its sets were evaluated; the mean of all shift sets
# always is. Papers on ImageNet give the mean of five sets or, without ObjectNet, of four, which
# cannot be compared.
COMBINATIONS: dict[str, Combination] = {
    "O3": mean_of("digits/counter", "digits/sketch", "digits/rendition"),
    **{
        f"digits {gap} gap": drop(f"digits-marked/{without}", "digits-marked/id")
        for gap, without in {
            "background": "no-background",
            "mark": "no-mark",
            "background and mark": "neither",
        }.items()
    },
    "mean of 5": mean_of(*IMAGENET_FOUR, "imagenet/objectnet"),
    "mean of 4": mean_of(*IMAGENET_FOUR),
    "CounterAnimal drop": drop("counteranimal/common", "counteranimal/counter"),
    "ImageNet-9 BG-gap": drop("imagenet-9/mixed_same", "imagenet-9/mixed_rand"),
    "ImageNet-W drop": drop("imagenet/val", "imagenet-w/imagenet-w"),
    "ImageNet-W carton gap": drop("imagenet-w/carton", "imagenet-w/carton-clean"),
    "ImageNet-E drop": drop("imagenet-e/original", "imagenet-e/edited"),
    "ImageNet-C mean": mean_of(*corruption_sets("imagenet-c")),
    "ImageNet-C mCE (lower is better)": mean_corruption_error("imagenet-c"),
    "ImageNet-C made here, mean": mean_of(*corruption_sets("imagenet-c-made")),
    "ImageNet-C made here, mCE (lower is better)": mean_corruption_error("imagenet-c-made"),
}
