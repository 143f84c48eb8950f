"""The masked training step in all its forms gives the gradients of the plain formula."""

from __future__ import annotations

import copy
import os
from functools import partial

import pytest
import pytorch_lightning as pl
import timm
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from cfmask import (
    AttentionRelevance,
    AttentionRollout,
    ContextMask,
    Counterfactual,
    Distillation,
    FineTuning,
    GradCAM,
    InputError,
    MaskedDistillation,
    NoFill,
    ObjectMask,
    SingleFill,
    TimmClassifier,
    digits,
)
from cfmask.runs.cost import forward_cost

OBJECT = Counterfactual(ObjectMask(0.3), NoFill())
CONTEXT = Counterfactual(ContextMask(0.5), NoFill())


def masked(classifier, **options):
    """Masked distillation without chance, away from its teacher."""
    options.setdefault("counterfactual", OBJECT)
    method = MaskedDistillation(copy.deepcopy(classifier), distill_weight=3.0, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    method.log = lambda *args, **kwargs: None
    return method


def at_once(loss):
    """What a trainer does with one part of the loss."""
    loss.backward()
    return loss.detach()


def gradient(method, batch, in_parts=False):
    """The step's whole gradient, flat; in parts as in a trainer, or in one backward pass."""
    if in_parts:
        method.backward_now = at_once
    method.zero_grad()
    loss = torch.stack(list(method.losses(*batch).values())).sum()
    loss.backward()
    parts = [p.grad for p in method.classifier.parameters()]
    return torch.cat([torch.zeros(0) if g is None else g.flatten() for g in parts])


def expected(classifier, teacher, batch, makers):
    """Loss and gradient by the formula, one graph for all."""
    images, labels = batch
    _, relevance = AttentionRelevance().explain(classifier, images, labels)
    loss = torch.nn.functional.cross_entropy(classifier(images), labels)
    for make in makers:
        _, hidden = make(images, relevance)
        target = teacher.features(images, hidden).detach()
        distance = (classifier.features(images, hidden) - target).square().mean()
        loss = loss + 3.0 * distance / len(makers)
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(classifier.parameters()))]
    )


@pytest.mark.parametrize("makers", [[OBJECT], [OBJECT, CONTEXT]])
@pytest.mark.parametrize("two", [True, False])
def test_the_gradient_is_that_of_the_formula(tiny_clip, digit_batch, makers, two):
    tiny_clip.double()
    batch = (digit_batch[0].double(), digit_batch[1])
    method = masked(tiny_clip, counterfactual=makers, two_backwards=two)
    want = expected(method.classifier, method.teacher, batch, makers)
    got = gradient(method, batch, in_parts=two)
    assert (got - want).norm() < 1e-6 * want.norm()


@pytest.mark.parametrize("of", ["logit", "loss"])
def test_a_plain_loop_may_clear_gradients_before_or_after_the_losses(tiny_clip, digit_batch, of):
    tiny_clip.double()
    batch = (digit_batch[0][:3].double(), digit_batch[1][:3])
    makers = [OBJECT, CONTEXT]
    method = masked(tiny_clip, counterfactual=makers, relevance_of=of)
    want = gradient(method, batch)
    if of == "logit":
        formula = expected(method.classifier, method.teacher, batch, makers)
        assert (want - formula).norm() < 1e-6 * formula.norm()
    del method.log
    method.zero_grad()
    losses = method.losses(*batch)
    assert all(p.grad is None for p in method.classifier.parameters())
    method.zero_grad()
    sum(losses.values()).backward()
    got = torch.cat([p.grad.flatten() for p in method.classifier.parameters()])
    assert (got - want).norm() < 1e-9 * want.norm()
    method = masked(tiny_clip, counterfactual=makers, relevance_of=of)
    in_parts = gradient(method, batch, in_parts=True)
    assert (in_parts - want).norm() < 1e-6 * want.norm()


def test_copies_average_over_donors(tiny_clip, digit_batch):
    make = Counterfactual(ObjectMask(0.3), SingleFill())
    many = masked(tiny_clip, counterfactual=make, copies=3)
    torch.manual_seed(0)
    got = many.losses(*digit_batch)["distill"].item()
    torch.manual_seed(0)
    one = masked(tiny_clip, counterfactual=make)
    torch.manual_seed(0)
    singles = [one.losses(*digit_batch)["distill"].item() for _ in range(3)]
    assert len(set(singles)) == 3
    assert got == pytest.approx(sum(singles) / 3, rel=1e-5)


def train(method, batches, tmp_path, **options):
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
        **options,
    )
    trainer.fit(method, batches)
    return torch.cat([p.detach().flatten() for p in method.classifier.parameters()])


def loader(batch, size):
    return DataLoader(TensorDataset(*batch), size)


@pytest.mark.parametrize("two", [True, False])
def test_accumulated_steps_equal_one_step_of_all(tiny_clip, digit_batch, tmp_path, two):
    # Adam's first step forgets the gradient's size, so plain SGD shows it.
    results = []
    for size, accumulate in ((8, 1), (2, 4)):
        method = masked(tiny_clip, two_backwards=two)
        method.configure_optimizers = lambda m=method: torch.optim.SGD(m.classifier.parameters(), 1)
        options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
        results.append(train(method, loader(digit_batch, size), tmp_path, **options))
    start = torch.cat([p.detach().flatten() for p in tiny_clip.parameters()])
    # Clipping once a step: the step has just the length of the limit.
    assert (results[0] - start).norm() == pytest.approx(0.5, rel=1e-3)
    assert (results[0] - results[1]).norm() < 1e-4


def _rank(rank, world, port, classifier, batch, two, out):
    """One of several processes: its share of the batch, then the first writes the weights."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    method = masked(classifier, two_backwards=two)
    method.configure_optimizers = lambda: torch.optim.SGD(method.classifier.parameters(), 0.1)
    share = tuple(x[rank::world] for x in batch)
    options = {"strategy": "ddp", "devices": world, "use_distributed_sampler": False}
    weights = train(method, loader(share, len(share[1])), out.parent, **options)
    if rank == 0:
        torch.save(weights, out)


def test_two_processes_take_the_step_of_one(tiny_clip, digit_batch, tmp_path):
    method = masked(tiny_clip)
    method.configure_optimizers = lambda: torch.optim.SGD(method.classifier.parameters(), 0.1)
    alone = train(method, loader(digit_batch, 8), tmp_path)
    port = 20000 + os.getpid() % 20000
    args = (2, port, tiny_clip, digit_batch, True, tmp_path / "weights.pt")
    # After `torch.export` and the like, what is forked from here could compute no gradient.
    torch.multiprocessing.start_processes(_rank, args, nprocs=2, start_method="forkserver")
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    start = torch.cat([p.detach().flatten() for p in tiny_clip.parameters()])
    assert (alone - together).norm() < 1e-5 * (alone - start).norm() + 1e-6


def test_recomputed_blocks_give_the_same_gradient(tiny_clip, digit_batch):
    plain = gradient(masked(tiny_clip), digit_batch)
    again = gradient(masked(tiny_clip, grad_checkpointing=True), digit_batch)
    assert torch.allclose(plain, again, atol=1e-6)


@pytest.mark.parametrize("model", ["tiny-clip", "test_vit"])
def test_blocks_are_recomputed_in_reduced_precision(tiny_clip, digit_batch, model):
    images, labels = digit_batch[0][:2], digit_batch[1][:2]
    classifier = tiny_clip
    if model != "tiny-clip":
        classifier = TimmClassifier(model, False, digits.CLASS_NAMES, image_size=64)
        images = F.interpolate(images, (64, 64))
    gradients = []
    for again in (False, True):
        method = FineTuning(copy.deepcopy(classifier), grad_checkpointing=again)
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(method.losses(images, labels).values())
        loss.backward()
        trained = [p.grad.flatten() for p in method.classifier.parameters() if p.grad is not None]
        gradients.append(torch.cat(trained))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_an_encoder_that_cannot_recompute_is_refused(tiny_clip):
    # CLIP's ResNets have the option without effect.
    resnet = torch.nn.Flatten()
    resnet.attnpool, resnet.set_grad_checkpointing = torch.nn.Identity(), lambda enable: None
    asserting = timm.create_model("hrnet_w18_small", num_classes=0)
    for encoder in (torch.nn.Flatten(), resnet, asserting):
        tiny_clip.encoder = encoder
        with pytest.raises(InputError, match="leave out grad_checkpointing"):
            FineTuning(tiny_clip, grad_checkpointing=True)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_encoders_give_the_same_weights(
    tiny_clip, digit_batch, tmp_path, monkeypatch, backend
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    results = []
    for compile in (False, True):
        make = Counterfactual(ObjectMask(0.3), SingleFill())
        method = masked(tiny_clip, counterfactual=make, compile=compile)
        torch.manual_seed(0)
        results.append(train(method, loader(digit_batch, 4), tmp_path))
    assert (results[0] - results[1]).norm() < 1e-4 * results[0].norm()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [FineTuning, pytest.param(partial(Distillation, distill_weight=1), marks=pytest.mark.slow)],
)
def test_a_compiled_step_gives_the_same_weights(
    tiny_clip, digit_batch, tmp_path, monkeypatch, backend, method
):
    graphs, results = [], []

    def counted(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counted))
    for wanted in (False, "step"):
        steps = method(copy.deepcopy(tiny_clip), compile=wanted)
        results.append(train(steps, loader(digit_batch, 4), tmp_path))
    assert graphs
    assert (results[0] - results[1]).norm() < 1e-4 * results[0].norm()


def test_a_step_that_reads_gradients_is_not_compiled_as_a_whole(tiny_clip):
    with pytest.raises(InputError, match=r"compile true or false .* but got step"):
        masked(tiny_clip, compile="step")


@pytest.mark.slow
def test_a_copy_of_a_compiled_classifier_runs_its_own_weights(
    tiny_clip, digit_batch, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    method = FineTuning(tiny_clip, compile=True)
    train(method, loader(digit_batch, 8), tmp_path)
    with torch.no_grad():
        before = tiny_clip(digit_batch[0])
        twin = copy.deepcopy(tiny_clip)
        twin.encoder.proj.zero_()
        assert twin.features(digit_batch[0]).abs().max() == 0
        assert torch.equal(tiny_clip(digit_batch[0]), before)
    # Another run prints its cost all the same.
    assert forward_cost(tiny_clip) is not None


def test_a_bf16_teacher_is_what_autocast_makes_of_it(tiny_clip, digit_batch, tmp_path):
    images, _ = digit_batch
    method = masked(tiny_clip, bf16_teacher=True)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        want = method.teacher.features(images)
    before = sum(p.nbytes for p in method.teacher.parameters())
    train(method, loader(digit_batch, 8), tmp_path)
    assert sum(p.nbytes for p in method.teacher.parameters()) < 0.6 * before
    assert torch.equal(method.teach(images), want)
    assert all(p.dtype == torch.float32 for p in method.classifier.parameters())


def test_the_relevance_of_the_loss_is_that_of_the_margin(tiny_clip, digit_batch):
    images, labels = digit_batch
    tiny_clip.double()
    images = images.double()
    logits, trace = AttentionRelevance().watch(tiny_clip, images)
    with trace.listen(logits, labels):
        torch.nn.functional.cross_entropy(logits, labels).backward()
    got = trace.relevance()
    # True logit minus the others' mean by probability, whose weights are constants.
    others = tiny_clip(images).softmax(-1).detach()
    others[range(8), labels] = 0
    others = others / others.sum(1, keepdim=True)

    class Margin(torch.nn.Module):
        def forward(self, values):
            return values - (others * values).sum(1, keepdim=True)

    head = tiny_clip.head
    tiny_clip.head = torch.nn.Sequential(head, Margin())
    want = AttentionRelevance().explain(tiny_clip, images, labels)[1]
    assert torch.allclose(got, want, atol=1e-6)


def test_the_relevance_of_the_loss_saves_a_backward_pass(tiny_clip, digit_batch):
    from torch.utils.flop_counter import FlopCounterMode

    costs = {}
    for of in ("logit", "loss"):
        method = masked(tiny_clip, relevance_of=of)
        with FlopCounterMode(display=False) as counter:
            gradient(method, digit_batch, in_parts=True)
        costs[of] = counter.get_total_flops()
        assert all(p.grad is not None for p in method.classifier.parameters())
    with FlopCounterMode(display=False) as counter:
        method.classifier(digit_batch[0])
    assert costs["logit"] - costs["loss"] > 0.7 * counter.get_total_flops()


def test_what_the_loss_cannot_explain_is_refused(tiny_clip):
    for options in ({"relevance": AttentionRollout()}, {"two_backwards": False}):
        with pytest.raises(InputError, match="relevance_of: loss"):
            masked(tiny_clip, relevance_of="loss", **options)
    with pytest.raises(InputError, match="at least one"):
        masked(tiny_clip, copies=0)


def test_a_cnn_takes_the_same_step(digit_batch):
    torch.manual_seed(0)
    cnn = TimmClassifier("test_resnet", False, digits.CLASS_NAMES, image_size=96).double()
    images = torch.nn.functional.interpolate(digit_batch[0].double(), (96, 96))
    batch = (images, digit_batch[1])
    gradients = [
        gradient(masked(cnn, relevance=GradCAM(), two_backwards=two), batch, in_parts=two)
        for two in (True, False)
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-6 * gradients[1].norm()
