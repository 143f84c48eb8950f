from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from support.small_methods import build, count_passes, fit
from support.training import fails

from cfmask import (
    AttentionRelevance,
    AttentionRollout,
    Counterfactual,
    DigitsData,
    Distillation,
    FineTuning,
    GradCAM,
    InputError,
    LinearProbe,
    MaskedDistillation,
    Method,
    MultiFill,
    NoFill,
    ObjectMask,
    RandomMask,
    SingleFill,
    TimmClassifier,
    digits,
    load_classifier,
)
from cfmask import methods as methods_package
from cfmask.methods.distillation import Distance

ALL = [
    kind
    for _, kind in inspect.getmembers(methods_package, inspect.isclass)
    if issubclass(kind, Method) and kind is not Method
]


@pytest.mark.parametrize("kind", ALL)
def test_every_method_trains_and_its_checkpoint_holds_the_student_alone(kind, tiny_clip, tmp_path):
    start = copy.deepcopy(tiny_clip)
    method = build(kind, tiny_clip, lr=1e-3)
    trainer = fit(method, tmp_path)
    assert method.global_step == 3
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    names = torch.load(path, weights_only=True)["state_dict"]
    assert not [name for name in names if "teacher" in name]
    loaded = load_classifier(path).state_dict()
    tuned, before = method.made_of(method.tuned()).state_dict(), start.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in tuned.items())
    assert any(not torch.equal(loaded[k], v) for k, v in before.items())


@pytest.mark.parametrize("kind", [Distillation, MaskedDistillation])
def test_the_teacher_stays_as_it_was_and_in_eval_mode(kind, tiny_clip, tmp_path):
    method = build(kind, tiny_clip, lr=1e-3)
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    modes = []
    first = method.teacher.encoder.conv1
    first.register_forward_hook(lambda module, args, out: modes.append(module.training))
    fit(method, tmp_path)
    assert modes and not any(modes)
    assert all(not m.training for m in method.teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    trained = {id(p) for group in method.optimizers().param_groups for p in group["params"]}
    assert not trained & {id(p) for p in method.teacher.parameters()}


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tiny_clip, tmp_path):
    results = []
    for seed in (0, 0, 1):
        pl.seed_everything(seed, verbose=False)
        method = build(
            MaskedDistillation,
            copy.deepcopy(tiny_clip),
            counterfactual=Counterfactual(ObjectMask(0.3), MultiFill()),
        )
        fit(method, tmp_path)
        results.append(torch.cat([p.flatten() for p in method.classifier.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_masked_step_runs_the_student_twice_and_the_teacher_once(tiny_clip, digit_batch):
    method = build(MaskedDistillation, tiny_clip)
    method.log = lambda *a, **k: None
    student, teacher = count_passes(tiny_clip), count_passes(method.teacher)
    method.losses(*digit_batch)
    assert student == [8, 8]
    assert teacher == [8]


def test_the_relevance_that_fits_the_encoder_is_the_default(tiny_clip, small_cnn):
    assert type(build(MaskedDistillation, tiny_clip).relevance) is AttentionRelevance
    assert type(build(MaskedDistillation, small_cnn).relevance) is GradCAM
    # Attention that leads to no feature, as of CaiT.
    tokens = replace(tiny_clip.tokens, pooled="other")
    tiny_clip.layout = replace(tiny_clip.layout, tokens=tokens)
    assert type(build(MaskedDistillation, tiny_clip).relevance) is GradCAM


def test_what_does_not_suit_the_encoder_is_refused_before_training(tiny_clip, small_cnn):
    data = DigitsData()
    data.class_names = small_cnn.class_names
    for relevance in (AttentionRelevance(), AttentionRollout()):
        with pytest.raises(InputError, match="use GradCAM"):
            build(MaskedDistillation, small_cnn, relevance=relevance).check(data)
    with pytest.raises(InputError, match="layer of test_resnet"):
        build(MaskedDistillation, small_cnn, relevance=GradCAM("layer9")).check(data)
    # A mask that reads no relevance takes any.
    make = Counterfactual(RandomMask(0.5), SingleFill())
    build(MaskedDistillation, small_cnn, relevance=AttentionRelevance(), counterfactual=make).check(
        data
    )
    small_cnn.encoder.layer1 = torch.nn.Sequential(small_cnn.encoder.layer1, Sorting())
    none = Counterfactual(ObjectMask(0.3), NoFill())
    with pytest.raises(InputError, match="use a fill"):
        build(MaskedDistillation, small_cnn, counterfactual=none).check(data)


class Sorting(torch.nn.Module):
    def forward(self, x):
        return x.sort(-1).values


def test_a_random_mask_costs_no_relevance(tiny_clip, digit_batch):
    class Forbidden(GradCAM):
        def explain(self, *args):
            raise AssertionError("not needed")

    method = build(
        MaskedDistillation,
        tiny_clip,
        relevance=Forbidden(),
        counterfactual=Counterfactual(RandomMask(0.5), SingleFill()),
    )
    method.log = lambda *a, **k: None
    assert torch.isfinite(method.losses(*digit_batch)["distill"])


def test_masked_distillation_without_masks_is_clean_distillation(tiny_clip, digit_batch):
    images, labels = digit_batch
    clean = Distillation(tiny_clip)
    masked = build(
        MaskedDistillation,
        tiny_clip,
        counterfactual=Counterfactual(RandomMask(0.0), SingleFill()),
    )
    masked.log = lambda *a, **k: None
    with torch.no_grad():
        for p in tiny_clip.parameters():
            p.add_(0.01 * torch.randn_like(p))
    expected, got = clean.losses(images, labels), masked.losses(images, labels)
    assert torch.allclose(expected["task"], got["task"])
    assert torch.allclose(expected["distill"], got["distill"])
    assert expected["distill"] > 0


def test_each_distance_is_the_formula_times_its_weight(tiny_clip, digit_batch):
    images, labels = digit_batch
    for distance, weight in (("feature", 30.0), ("relative_feature", 4.0), ("logit", 2.0)):
        method = Distillation(copy.deepcopy(tiny_clip), distance=distance, distill_weight=weight)
        with torch.no_grad():
            method.classifier.encoder.proj.copy_(tiny_clip.encoder.proj.flip(0))
        got = method.losses(images, labels)["distill"].item()
        f, t = method.classifier.features(images), method.teacher.features(images)
        if distance == "logit":
            p = (method.teacher.classify(t) / 10).softmax(-1)
            q = (method.classifier.classify(f) / 10).softmax(-1)
            expected = 2 * 100 * (p * (p / q).log()).sum(-1).mean().item()
        else:
            scale = t.square().mean().item() if distance == "relative_feature" else 1
            expected = weight * (f - t).square().mean().item() / scale
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_a_probed_head_is_the_logistic_regression_of_the_features():
    from scipy.optimize import minimize

    torch.manual_seed(0)
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=96)
    method = Distillation(cnn)
    data = DigitsData(train_images=60, val_images=10, batch_size=13)
    method.probe(data)
    images = torch.stack([data.train_set[i][0] for i in range(60)]).float() / 255
    labels = torch.tensor([data.train_set[i][1] for i in range(60)])
    with torch.no_grad():
        features = cnn.features(images).double()
        got = cnn(images).double().softmax(-1)
    x = features / features.square().mean().sqrt()

    def loss(flat):
        w = torch.tensor(flat, requires_grad=True)
        weight, bias = w[:-10].view(10, -1), w[-10:]
        fit = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum")
        total = fit + weight.square().sum() / 2
        total.backward()
        return total.item(), w.grad.numpy()

    start = torch.zeros(10 * x.shape[1] + 10).double().numpy()
    best = torch.tensor(minimize(loss, start, jac=True, method="L-BFGS-B").x)
    expected = (x @ best[:-10].view(10, -1).T + best[-10:]).softmax(-1)
    assert torch.allclose(got, expected, atol=0.01)
    for a, b in zip(cnn.head.parameters(), method.teacher.head.parameters()):
        assert torch.equal(a, b)


def test_a_zero_shot_head_is_not_probed(tiny_clip):
    with pytest.raises(InputError, match="leave out --probe"):
        FineTuning(tiny_clip).probe(DigitsData())


def test_two_classes_are_probed_like_any_number():
    from cfmask.heads import fit_linear_head

    torch.manual_seed(0)
    features = torch.randn(100, 3)
    labels = (features[:, 0] > 0).long() * 2
    head = torch.nn.Linear(3, 4)
    fit_linear_head(head, features, labels)
    with torch.no_grad():
        assert (head(features).argmax(1) == labels).float().mean() > 0.95
        assert head.weight[1].abs().sum() == head.weight[3].abs().sum() == 0


def test_linear_probe_trains_the_head_alone(tiny_clip, tmp_path):
    before = copy.deepcopy(tiny_clip.state_dict())
    fit(LinearProbe(tiny_clip, lr=1e-2), tmp_path)
    for name, value in tiny_clip.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("head."), name


def test_batch_norm_keeps_the_statistics_of_pretraining(tmp_path):
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=96)
    cam = Counterfactual(ObjectMask(0.3), SingleFill())
    method = MaskedDistillation(cnn, counterfactual=cam, relevance=GradCAM(), lr=1e-2)
    before = {k: v.clone() for k, v in cnn.named_buffers()}
    weights = [p.detach().clone() for p in cnn.parameters()]
    fit(method, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in cnn.named_buffers())
    assert all(not torch.equal(p, old) for p, old in zip(cnn.parameters(), weights))


def test_the_schedule_is_one_cycle_over_all_steps(tiny_clip, tmp_path):
    rates = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    method = FineTuning(tiny_clip, lr=1e-3, warmup=0.2)
    fit(method, tmp_path, steps=10, callbacks=[Spy()])
    assert len(rates) == 10
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == 1
    assert rates[-1] < 1e-6
    assert method.optimizers().param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("kind", [FineTuning, LinearProbe])
def test_momentum_runs_against_the_learning_rate(kind, tiny_clip, tmp_path):
    seen = []

    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            group = trainer.optimizers[0].param_groups[0]
            seen.append((group["lr"], *group["betas"]))

    method = build(kind, tiny_clip, lr=1e-3, warmup=0.4, cycle_momentum=True)
    fit(method, tmp_path, steps=10, callbacks=[Spy()])
    rates, betas, second = zip(*seen)
    assert betas[0] == 0.95 and betas[-1] == pytest.approx(0.95)
    # The lowest beta goes with the highest rate.
    assert rates.index(max(rates)) == betas.index(min(betas)) > 1
    assert min(betas) == pytest.approx(0.85, abs=1e-3)
    assert set(second) == {0.999}


@pytest.mark.parametrize("kind", ALL)
def test_constructors_spell_their_arguments_and_all_of_them_arrive(kind, tiny_clip):
    given = inspect.signature(kind).parameters
    recipe = dict(inspect.signature(Method).parameters)
    del recipe["classifier"]
    assert not [p for p in given.values() if p.kind is p.VAR_KEYWORD]
    if kind is not LinearProbe:
        assert {name: given[name].default for name in recipe} == {
            name: parameter.default for name, parameter in recipe.items()
        }
    values = {"lr": 2e-3, "weight_decay": 0.3, "betas": (0.7, 0.8), "warmup": 0.4}
    values |= {"task_weight": 0.6, "cycle_momentum": True, "grad_checkpointing": True}
    values |= {"label_smoothing": 0.1}
    values |= {"distance": "logit", "distill_weight": 7.0, "temperature": 8.0, "bf16_teacher": True}
    values = {name: value for name, value in values.items() if name in given}
    method = build(kind, tiny_clip, **values)
    assert {name: getattr(method, name) for name in values} == values
    if "compile" in given:
        assert build(kind, tiny_clip, compile=True).compiled is True


def test_a_loss_that_is_not_finite_stops_at_once(tiny_clip, tmp_path):
    with torch.no_grad():
        tiny_clip.head.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite at step 0"):
        fit(FineTuning(tiny_clip), tmp_path)


def test_data_of_other_classes_or_single_images_is_refused_before_training(tiny_clip):
    method = build(MaskedDistillation, tiny_clip)
    with pytest.raises(InputError, match="at least 2 images"):
        method.check(DigitsData(batch_size=1))
    data = DigitsData()
    data.class_names = ("a", "b")
    with pytest.raises(InputError, match="data of 10 classes"):
        method.check(data)


@pytest.mark.parametrize(
    "options", [{"lr": 0}, {"warmup": 1.5}, {"temperature": 0}, {"distill_weight": -1}]
)
def test_numbers_without_meaning_are_refused(tiny_clip, options):
    with pytest.raises(InputError, match="but got"):
        Distillation(tiny_clip, **options)


def test_bf16_gives_the_gradient_of_fp32(tiny_clip, digit_batch):
    gradients = []
    for bf16 in (False, True):
        pl.seed_everything(0, verbose=False)
        method = build(MaskedDistillation, copy.deepcopy(tiny_clip))
        method.log = lambda *args, **kwargs: None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sum(method.losses(*digit_batch).values()).backward()
        given = [p.grad for p in method.classifier.parameters() if p.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in given]))
    # A bf16 number has 8 bits: 0.4 %.
    assert (gradients[0] - gradients[1]).norm() < 0.03 * gradients[0].norm()


def test_bf16_trains_to_the_same_features(tiny_clip, tmp_path, digit_batch):
    features = [tiny_clip.features(digit_batch[0])]
    for precision in ("32-true", "bf16-mixed"):
        pl.seed_everything(0, verbose=False)
        method = build(MaskedDistillation, copy.deepcopy(tiny_clip), lr=1e-3)
        fit(method, tmp_path, precision=precision)
        features.append(method.classifier.features(digit_batch[0]))
    start, exact, near = features
    # Of weights this does not hold: AdamW moves those of a gradient near zero by its sign.
    assert (exact - near).norm() < 0.05 * (exact - start).norm()


def test_arguments_that_are_handed_on_are_seen_by_name_with_their_defaults():
    class Mine(Distillation):
        def __init__(self, classifier, extra: int = 3, **rest):
            super().__init__(classifier, **rest)

    shown = inspect.signature(Mine).parameters
    parent = inspect.signature(Method).parameters
    assert list(shown)[:2] == ["classifier", "extra"]
    assert {name: shown[name].default for name in parent} == {
        name: argument.default for name, argument in parent.items()
    }
    assert shown["distance"].default == "feature" and "rest" not in shown
    masked = inspect.signature(MaskedDistillation).parameters
    assert set(inspect.signature(Distillation).parameters) < set(masked)
    types = {"lr": float, "betas": tuple[float, float], "distance": Distance, "copies": "int"}
    assert {name: masked[name].annotation for name in types} == types


@pytest.mark.parametrize("option", ["--model.lr", "--model.distance", "--model.copies"])
def test_a_value_of_another_type_is_refused_in_one_line(option, capsys):
    assert "abc" in fails(capsys, "--config", "demo", f"{option}=abc")
