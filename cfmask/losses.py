"""Losses: pure functions of the outputs of student and frozen teacher.

Letters: B images, D feature width, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over all elements of features (B, D), not normalised.

    Source: arXiv 2303.03052, equation 6.
    """
    return F.mse_loss(student.float(), teacher.float())


def relative_feature_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """`feature_mse` in units of the mean squared teacher feature.

    The scale of features differs between encoders; the weight of this loss carries over.
    """
    teacher = teacher.float()
    return feature_mse(student, teacher) / teacher.square().mean()


def logit_kl(student: Tensor, teacher: Tensor, temperature: float = 10.0) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of logits (B, K), mean over the batch.

    The temperature T is above 0.

    Source: Hinton et al. 2015 (arXiv 1503.02531).
    """
    student, teacher = (F.log_softmax(x.float() / temperature, -1) for x in (student, teacher))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
