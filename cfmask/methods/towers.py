"""Towers: fine-tuning beside the text tower of a CLIP.

Letters: B images of all devices, each with a caption of its class, D feature width, K classes.
Features are unit vectors, float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn
from typing_extensions import Unpack

from cfmask import processes
from cfmask.classifier import Classifier
from cfmask.data.datamodule import TrainingData
from cfmask.errors import InputError
from cfmask.heads import ZeroShotHead
from cfmask.methods.base import Method
from cfmask.methods.recipe import Recipe
from cfmask.methods.teacher import frozen_copy
from cfmask.text import Captions, TextTower, Tokenizer

# Before the names of the text tower's weights.
TEXT = "text."


class Embedded(NamedTuple):
    """Images and their captions, of all devices, as a pair of towers sees them.

    Attributes:
        image: features (B, D).
        text: features (B, D).
        scale: what logits are multiplied by, a scalar.
    """

    image: Tensor
    text: Tensor
    scale: Tensor

    @property
    def logits(self) -> Tensor:
        """Float (B, B): images by captions."""
        return self.scale * self.image @ self.text.T


class Pair(nn.Module):
    """Copies of an image tower and its text tower that get no gradient.

    Args:
        image: the classifier.
        text: its text tower.
    """

    def __init__(self, image: Classifier, text: TextTower) -> None:
        super().__init__()
        self.image = frozen_copy(image)
        self.text = copy.deepcopy(text).requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, tokens: Tensor) -> Embedded:
        """Features of images (B, 3, H, W) in [0, 1] and of tokens int64 (B, L)."""
        return embedded(self.image, self.text, images, tokens)


@dataclass(frozen=True)
class TextPass:
    """What a step runs of a text tower, for the printed cost.

    Attributes:
        text: the tower.
        length: tokens of a caption.
        passes: forward passes of an image's caption; a backward pass counts as two.
        graphs: forward passes whose activations are kept at a time.
    """

    text: TextTower
    length: int
    passes: float
    graphs: float


class TextMethod(Method):
    """A method that reads captions of the classes. It needs a classifier with a zero-shot head.

    The text tower is loaded as it was pretrained, so that a run starts from a model, not from a run
    or a weights file.

    Args:
        classifier: see `Method`; of open_clip, or of a class of one's own with `text_tower`.
        **recipe: see `Method`.
    """

    def __init__(self, classifier: Classifier, **recipe: Unpack[Recipe]) -> None:
        super().__init__(classifier, **recipe)
        if not isinstance(classifier.head, ZeroShotHead):
            raise InputError(
                f"Expected a zero-shot head for {type(self).__name__}, but {classifier.name} has a "
                f"{type(classifier.head).__name__}; use an open_clip model with head: zero_shot."
            )
        if "descriptions" in classifier.spec.options:
            raise InputError(
                f"Expected a head made from prompts for {type(self).__name__}, but that of "
                f"{classifier.name} is made from descriptions; leave them out."
            )

    def captions(self, text: TextTower, tokenizer: Tokenizer) -> Captions:
        """The captions of the classes: the templates of the zero-shot head, all filled."""
        spec = self.classifier.spec
        templates = spec.options.get("templates", ["a photo of a {}."])
        return Captions(text, tokenizer, spec.class_names, templates)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `Method.state_dict`. Averages are kept, frozen teachers are not."""
        state = super().state_dict(*args, **kwargs)
        return {k: v for k, v in state.items() if not k.startswith("teacher.")}

    def text_passes(self) -> list[TextPass]:
        """What a step runs of text towers beside the passes of the encoder."""
        return []

    def train(self, mode: bool = True) -> TextMethod:
        """Copies that get no gradient stay in eval mode."""
        super().train(mode)
        for name, module in self.named_children():
            if name in ("teacher", "average"):
                module.eval()
        return self


class ContrastiveMethod(TextMethod):
    """Both towers are trained on images and captions; the head is made from the text tower.

    Each image comes with its class name in one template, drawn anew in each step. The head has no
    gradient of its own: it is rebuilt from the tuned text tower whenever the model is validated or
    saved, so that what is saved is an ordinary classifier. `head_lr` is the learning rate of the
    text tower. Labels are smoothed over the batch.

    Args:
        classifier: see `TextMethod`.
        **recipe: see `Method`; without mixup and cutmix.
    """

    def __init__(self, classifier: Classifier, **recipe: Unpack[Recipe]) -> None:
        super().__init__(classifier, **recipe)
        if self.mixing:
            raise InputError(
                f"Expected no mixup or cutmix for {type(self).__name__}, whose captions cannot be "
                "mixed; leave them out."
            )
        self.text, tokenizer = classifier.text_tower()
        if self.grad_checkpointing:
            self.text.tower.transformer.grad_checkpointing = True
        self.by_class = self.captions(self.text, tokenizer)
        classifier.head.requires_grad_(False)

    def on_fit_start(self) -> None:
        """See `Method.on_fit_start`."""
        super().on_fit_start()
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise InputError(
                f"Expected another strategy than FSDP for {type(self).__name__}, whose head is "
                "made from the whole text tower, but got that."
            )

    def check(self, data: TrainingData) -> None:
        """See `Method.check`. A caption has to be told from another one."""
        super().check(data)
        if data.batch_size < 2:
            raise InputError(
                f"Expected at least 2 images in a batch for {type(self).__name__}, which tells "
                f"their captions apart, but got {data.batch_size}; raise --data.batch_size."
            )

    def embed(self, images: Tensor, tokens: Tensor) -> Embedded:
        """Images (B, 3, H, W) in [0, 1] and captions int64 (B, L) as the tuned towers see them."""
        return embedded(self.classifier, self.text, images, tokens)

    def contrast(self, seen: Embedded, same: Tensor | None = None) -> Tensor:
        """Weighted mean of the cross-entropies of images among captions and the other way round.

        Args:
            seen: the batch.
            same: bool (B, B), pairs to leave out; never the diagonal.
        """
        logits = seen.logits
        if same is not None:
            logits = logits.masked_fill(same, float("-inf"))
        own = torch.arange(len(logits), device=logits.device)
        return (self.task_loss(logits, own) + self.task_loss(logits.T, own)) / 2

    def text_passes(self) -> list[TextPass]:
        """See `TextMethod.text_passes`."""
        passes = 4.0 if self.grad_checkpointing else 3.0
        return [TextPass(self.text, self.by_class.longest, passes, 1.0)]

    def tuned(self) -> dict[str, Tensor]:
        """See `Method.tuned`: of both towers, without the head, which the text tower makes."""
        both = (self.classifier.state_dict(), self.text.state_dict(prefix=TEXT))
        return {k: v for state in both for k, v in state.items() if k != "head.weight"}

    def made_of(self, weights: Mapping[str, Tensor]) -> Classifier:
        """See `Method.made_of`."""
        own = {k: v for k, v in weights.items() if not k.startswith(TEXT)}
        read = {k.removeprefix(TEXT): v for k, v in weights.items() if k.startswith(TEXT)}
        made, text = super().made_of(own), copy.deepcopy(self.text)
        text.load_state_dict({**text.state_dict(), **read})
        made.head.load_state_dict({**made.head.state_dict(), "weight": self.by_class.head(text)})
        return made

    def rebuild_head(self) -> None:
        """Set the head to that of the text tower as it is."""
        head = self.classifier.head
        assert isinstance(head, ZeroShotHead)
        with torch.no_grad():
            head.weight.copy_(self.by_class.head(self.text))

    def on_validation_start(self) -> None:
        """The head of the weights that are validated."""
        self.rebuild_head()

    def on_train_end(self) -> None:
        """The head of the last weights."""
        super().on_train_end()
        self.rebuild_head()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `Method.on_save_checkpoint`. The head is that of the weights that are saved."""
        super().on_save_checkpoint(checkpoint)
        self.rebuild_head()
        weight = self.classifier.head.state_dict()["weight"]
        checkpoint["state_dict"]["classifier.head.weight"] = weight


def embedded(image: Classifier, text: TextTower, images: Tensor, tokens: Tensor) -> Embedded:
    """Images (B, 3, H, W) in [0, 1] and captions int64 (B, L), of this device, as those of all."""
    seen, read = unit(image.features(images)), text(tokens)
    with torch.autocast(images.device.type, enabled=False):
        return Embedded(processes.rows_of_all(seen), processes.rows_of_all(read), text.scale)


def unit(features: Tensor) -> Tensor:
    """Features (B, D) as unit vectors."""
    return F.normalize(features, dim=-1)


def same_class(labels: Tensor) -> Tensor:
    """Bool (B, B): pairs of images of one class, of the labels int64 of this device."""
    labels = processes.rows_of_all(labels)
    return labels == labels[:, None]
