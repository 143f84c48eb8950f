"""Maps of the grad-cam package as relevance."""

from __future__ import annotations

import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from cfmask import Counterfactual, InputError, ObjectMask, PackageCAM, SingleFill
from cfmask.package_cam import package_cams

# Each of them reads layers in a way of its own; the others are like one of these.
NAMES = ["ScoreCAM", "EigenCAM", "AblationCAM", "FullGrad", "XGradCAM", "FinerCAM"]


def state_of(classifier):
    """What a relevance must leave as it was."""
    return (
        {name: value.clone() for name, value in classifier.state_dict().items()},
        {name: module.training for name, module in classifier.named_modules()},
        [len(module._forward_hooks) for module in classifier.modules()],
        [parameter.requires_grad for parameter in classifier.parameters()],
        [parameter.grad for parameter in classifier.parameters()],
        [type(module) for module in classifier.modules()],
    )


@pytest.mark.parametrize("name", NAMES)
def test_maps_of_transformers_and_cnns_leave_the_model_as_it_was(
    name, tiny_clip, small_cnn, digit_batch, capfd
):
    for model, images in ((tiny_clip, digit_batch[0][:2]), (small_cnn, torch.rand(2, 3, 96, 96))):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        before = state_of(model)
        logits, maps = PackageCAM(name).explain(model, images, torch.tensor([0, 1]))
        after = state_of(model)
        assert before[0].keys() == after[0].keys()
        assert all(torch.equal(value, after[0][key]) for key, value in before[0].items())
        assert before[1:] == after[1:]
        assert maps.shape == (2, *model.grid) and not maps.requires_grad
        assert ((maps >= 0) & (maps <= 1)).all()
        assert torch.allclose(logits, model(images), atol=1e-5) and logits.requires_grad
    assert capfd.readouterr() == ("", "")


def test_a_patch_has_the_mean_of_the_packages_pixels(small_cnn):
    images, labels = torch.rand(2, 3, 96, 96), torch.tensor([2, 1])
    cam = pytorch_grad_cam.GradCAMPlusPlus(small_cnn, [small_cnn.layer(small_cnn.feature_map)])
    pixels = cam(input_tensor=images, targets=[ClassifierOutputTarget(k) for k in (2, 1)])
    h, w = small_cnn.grid
    patches = pixels.reshape(2, h, 96 // h, w, 96 // w).mean((2, 4))
    expected = torch.from_numpy(patches / patches.max((1, 2), keepdims=True))
    found = PackageCAM("GradCAMPlusPlus").explain(small_cnn, images, labels)[1]
    assert torch.allclose(found, expected.float(), atol=1e-5)


def test_they_choose_the_patches_of_a_mask(tiny_clip, digit_batch):
    images, labels = digit_batch
    maps = PackageCAM("EigenCAM").explain(tiny_clip, images, labels)[1]
    made, replaced = Counterfactual(ObjectMask(0.5), SingleFill())(images, maps)
    assert 0 < replaced.float().mean() < 1
    assert not torch.equal(made, images)


def test_all_classes_of_the_package_are_known():
    bases = pytorch_grad_cam.base_cam.BaseCAM.__subclasses__()
    assert {base.__name__ for base in bases} <= set(package_cams())
    assert {"FinerCAM", "RefineCAM", "SESS"} <= set(package_cams())


def test_unknown_names_layers_and_misfits_are_one_line(tiny_clip, digit_batch):
    with pytest.raises(InputError, match=r"Unknown class of pytorch_grad_cam 'ScoreCam'.*ScoreCAM"):
        PackageCAM("ScoreCam")
    with pytest.raises(InputError, match="Unknown layer of tiny-clip"):
        PackageCAM("EigenCAM", layer="nowhere").explain(tiny_clip, *digit_batch)
    with pytest.raises(InputError, match="Expected a CNN for ShapleyCAM"):
        PackageCAM("ShapleyCAM").explain(tiny_clip, *digit_batch)
    with pytest.raises(InputError, match=r"Unknown option of EigenCAM 'colour'.*reshape_transform"):
        PackageCAM("EigenCAM", options={"colour": "red"})
    with pytest.raises(InputError, match="Expected an encoder and options that EigenCAM"):
        cam = PackageCAM("EigenCAM", options={"reshape_transform": lambda x: x[0, 0, 0, 0]})
        cam.explain(tiny_clip, *digit_batch)


def test_a_map_by_second_derivatives_explains_a_cnn(small_cnn, capfd):
    images, labels = torch.rand(2, 3, 96, 96), torch.tensor([0, 2])
    maps = PackageCAM("ShapleyCAM", layer="layer2").explain(small_cnn, images, labels)[1]
    assert maps.shape == (2, *small_cnn.grid) and maps.isfinite().all()
    assert capfd.readouterr() == ("", "")
