from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from cfmask.losses import feature_mse, logit_kl, relative_feature_mse


def test_feature_distance_is_the_mean_of_all_squared_differences():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = sum((a - b) ** 2 for a, b in zip(student.flatten(), teacher.flatten())) / 35
    assert feature_mse(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)


def test_relative_distance_does_not_see_the_scale_of_the_features():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    one = relative_feature_mse(student, teacher)
    assert torch.allclose(relative_feature_mse(20 * student, 20 * teacher), one)
    assert relative_feature_mse(torch.zeros(5, 7), teacher).item() == pytest.approx(1)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_logit_distance_is_the_tempered_divergence(temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 4)) * 5
    p, q = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    got = logit_kl(torch.tensor(student), torch.tensor(teacher), temperature)
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_equal_students_have_no_distance_and_no_gradient():
    teacher = torch.randn(3, 4)
    for distance in (feature_mse, relative_feature_mse, logit_kl):
        student = teacher.clone().requires_grad_()
        value = distance(student, teacher)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-5)
        assert student.grad is not None and student.grad.abs().max() < 1e-5
