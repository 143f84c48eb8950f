"""Methods with the text tower, against slow and obvious versions of what they add up."""

from __future__ import annotations

import math
from types import SimpleNamespace

import open_clip
import pytest
import torch
from exact_cost import SavedBytes
from open_clip.model import CLIP, CustomTextCLIP
from support.text_steps import (
    contrast,
    cross_entropy,
    divergence,
    dot,
    drawn,
    log_softmax,
    moved,
    norm,
    padded,
    rows,
    seen,
    table,
    turned,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cfmask import (
    CARFT,
    FLYP,
    TRACER,
    CaRot,
    DigitsData,
    InputError,
    LipsumFT,
    OpenClipClassifier,
    StarFT,
    digits,
)
from cfmask.methods.starft import Around
from cfmask.runs.cost import forward_cost, memory, text_cost
from cfmask.text import Captions, TextTower

KINDS = [CARFT, FLYP, TRACER, CaRot, LipsumFT, StarFT]


def close(got, expected):
    assert got.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.fixture
def batch(digit_batch):
    """Eight images, and labels of which two pairs are equal."""
    images, labels = digit_batch
    labels = labels.clone()
    labels[:4] = torch.tensor([3, 5, 3, 5])
    labels[4:] = torch.tensor([0, 1, 2, 7])
    return images, labels


def test_captions_are_those_of_the_tokenizer(tiny_clip):
    method = FLYP(tiny_clip)
    tokenizer = tiny_clip.text_tower()[1]
    labels = torch.tensor([3, 3, 7, 0] * 10)
    tokens = drawn(method, labels)
    templates = method.by_class.drawn(labels)
    texts = [
        digits.TEMPLATES[t].format(digits.CLASS_NAMES[k])
        for k, t in zip(labels.tolist(), templates.tolist())
    ]
    assert torch.equal(padded(method, tokens), tokenizer(texts))
    assert len(set(texts)) > 10
    # As long as the longest of the batch.
    assert (tokens[:, -1] != 0).any() and tokens.shape[1] < 16


def test_the_head_is_that_of_open_clip_for_the_tuned_towers(tiny_clip):
    method = FLYP(tiny_clip)
    moved(method.text)
    method.rebuild_head()
    clip, tokenizer = method.text.clip, tiny_clip.text_tower()[1]
    makers = [lambda name, t=t: t.format(name) for t in digits.TEMPLATES]
    weight = open_clip.build_zero_shot_classifier(clip, tokenizer, digits.CLASS_NAMES, makers, 10)
    expected = clip.logit_scale.exp() * weight.T
    assert torch.allclose(tiny_clip.head.weight, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "is_causal"),
    [
        (CLIP, {}, True),
        (CustomTextCLIP, {"proj_bias": True}, True),
        (CustomTextCLIP, {"pool_type": "eos", "eos_id": 49}, True),
        # As CoCa's and SigLIP's are: what follows the end is read.
        (CustomTextCLIP, {"embed_cls": True}, False),
        (CustomTextCLIP, {"no_causal_mask": True, "pool_type": "last"}, False),
    ],
)
def test_features_of_short_captions_are_those_of_open_clip(kind, options, is_causal):
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2, **options}
    clip = kind(16, vision, text).eval()
    if options.get("proj_bias"):
        clip.text.text_projection.bias.data.normal_()
    tokens = torch.zeros(3, 12, dtype=torch.long)
    for row, words in zip(tokens, (2, 4, 6)):
        row[: words + 2] = torch.tensor([48, *torch.randint(1, 48, (words,)), 49])
    expected = clip.encode_text(tokens, normalize=True)
    tower = TextTower(clip)
    assert tower.is_causal == is_causal
    assert tower.ends(tokens).tolist() == ([4, 6, 8] if is_causal else [12] * 3)
    got = tower(tokens[:, :8] if is_causal else tokens)
    assert torch.allclose(got, expected, atol=1e-6)
    assert not [name for name, _ in tower.named_parameters() if "visual" in name]


@pytest.mark.parametrize("skip", [False, True])
def test_flyp_is_two_cross_entropies(tiny_clip, batch, skip):
    images, labels = batch
    method = FLYP(tiny_clip, skip_same_class=skip)
    moved(method.text)
    tokens = drawn(method, labels)
    got = method.losses(images, labels)
    f, t, scale = seen(method, images, tokens)
    logits = table(scale, f, t)
    if skip:
        kinds = labels.tolist()
        for i, row in enumerate(logits):
            for j in range(len(row)):
                if i != j and kinds[i] == kinds[j]:
                    row[j] = -1e9
    close(got["task"], contrast(logits))
    assert set(got) == {"task"}


def test_labels_are_smoothed_over_the_batch(tiny_clip, batch):
    images, labels = batch
    method = FLYP(tiny_clip, label_smoothing=0.2, task_weight=0.5)
    tokens = drawn(method, labels)
    got = method.losses(images, labels)["task"]
    f, t, scale = seen(method, images, tokens)
    logits = table(scale, f, t)
    total = 0.0
    for each in (logits, turned(logits)):
        for i, row in enumerate(each):
            shares = [0.2 / 8 + 0.8 * (i == j) for j in range(8)]
            total -= dot(shares, log_softmax(row)) / 8
    close(got, 0.5 * total / 2)


def test_carft_is_the_divergence_of_contexts(tiny_clip, batch):
    images, labels = batch
    tower, tokenizer = tiny_clip.text_tower()
    method = CARFT(tiny_clip, context_weight=1.5)
    pretrained = rows(tiny_clip.features(images))
    moved(tiny_clip)
    got = method.losses(images, labels)
    contexts = []
    for template in digits.TEMPLATES:
        tokens = tokenizer([template.format(name) for name in digits.CLASS_NAMES])
        features = rows(tower.clip.encode_text(tokens))
        mean = torch.tensor([math.fsum(column) / 10 for column in zip(*features)]).double()
        contexts.append((mean / mean.norm()).tolist())
    scale = tower.clip.logit_scale.exp().item()
    before, after = (
        table(scale, f, contexts) for f in (pretrained, rows(tiny_clip.features(images)))
    )
    close(got["context"], 1.5 * divergence(before, after))
    logits = tiny_clip(images).double().tolist()
    expected = -sum(log_softmax(row)[k] for row, k in zip(logits, labels.tolist())) / 8
    close(got["task"], expected)


def test_lipsum_is_the_distance_of_logits_for_random_texts(tiny_clip, batch):
    images, labels = batch
    tower, tokenizer = tiny_clip.text_tower()
    method = LipsumFT(tiny_clip, lipsum_weight=0.7, texts=6, length=4)
    pretrained = rows(tiny_clip.features(images))
    moved(tiny_clip)
    torch.manual_seed(5)
    texts = method.drawn()
    torch.manual_seed(5)
    got = method.losses(images, labels)["lipsum"]
    begin, end = tokenizer([""])[0, :2].tolist()
    assert texts.shape == (6, 6) and (texts[:, 0] == begin).all() and (texts[:, -1] == end).all()
    assert (texts[:, 1:-1] < begin).all() and texts[:, 1:-1].unique().numel() > 10
    read = rows(tower.clip.encode_text(torch.nn.functional.pad(texts, (0, 10))))
    scale = tower.clip.logit_scale.exp().item()
    after, before = (table(scale, f, read) for f in (rows(tiny_clip.features(images)), pretrained))
    distances = [
        sum((a - b) ** 2 for a, b in zip(one, other)) / 12 for one, other in zip(after, before)
    ]
    close(got, 0.7 * sum(distances) / 8)
    assert not tiny_clip.head.bias.requires_grad


def taught(method, images, tokens):
    """Features and scale of the average, moved away from the student."""
    pair = method.average
    text = pair.text.clip.encode_text(padded(method, tokens))
    return rows(pair.image.features(images)), rows(text), pair.text.clip.logit_scale.exp().item()


def test_carot_adds_norms_and_the_answers_of_the_average(tiny_clip, batch):
    images, labels = batch
    method = CaRot(tiny_clip, distill_weight=1.1, orthogonal_weight=0.3, cross_weight=0.2)
    moved(method.average)
    tokens = drawn(method, labels)
    got = method.losses(images, labels)
    (f, t, s), (f0, t0, s0) = seen(method, images, tokens), taught(method, images, tokens)
    own, held = table(s, f, t), table(s0, f0, t0)
    close(got["task"], contrast(own))
    total = 0.0
    for student, teacher in ((own, held), (turned(own), turned(held))):
        for a, b in zip(student, teacher):
            total -= sum(math.exp(p) * q for p, q in zip(log_softmax(b), log_softmax(a)))
    close(got["distill"], 1.1 * total / 8)
    image = tiny_clip.encoder.proj.double()
    close(got["orthogonal"], 0.3 * norm(image.T @ image - torch.eye(64).double()))
    close(got["cross"], 0.2 * norm(image @ method.text.clip.text_projection.double().T))
    method._held = False
    assert set(method.losses(images, labels)) == {"task", "orthogonal", "cross"}


def test_tracer_adds_four_distances_to_the_average(tiny_clip, batch):
    images, labels = batch
    method = TRACER(tiny_clip, distill_weight=0.4, feature_weight=300.0, cross_weight=0.2)
    moved(method.average)
    tokens = drawn(method, labels)
    got = method.losses(images, labels)
    (f, t, s), (f0, t0, s0) = seen(method, images, tokens), taught(method, images, tokens)
    own, held = table(s, f, t), table(s0, f0, t0)

    def mse(one, other):
        return sum((a - b) ** 2 for x, y in zip(one, other) for a, b in zip(x, y)) / (8 * 64)

    features = 300 * (mse(f, f0) + mse(t, t0))
    crd = (divergence(held, own) + divergence(turned(held), turned(own))) / 2
    images_among, texts_among = table(s, f, t0), table(s, t, f0)
    icl = (cross_entropy(images_among) + cross_entropy(texts_among)) / 2
    crossed = divergence(held, images_among) + divergence(turned(held), texts_among)
    close(got["distill"], 0.4 * (features + crd + icl + crossed / 2))
    close(got["task"], contrast(own))
    projections = tiny_clip.encoder.proj.double(), method.text.clip.text_projection.double()
    close(got["cross"], 0.2 * norm(projections[0] @ projections[1].T))


def test_starft_is_the_divergence_on_captions_with_surroundings(tiny_clip, batch):
    images, labels = batch
    method = StarFT(tiny_clip, star_weight=0.6, surroundings=["at night", "in a forest"])
    moved(method.classifier), moved(method.text)
    tokens = drawn(method, labels)
    around = []
    method.around.register_forward_hook(lambda module, args, out: around.append(out))
    got = method.losses(images, labels)
    f, t, s = seen(method, images, tokens)
    close(got["task"], contrast(table(s, f, t)))
    tower = method.teacher.text.clip
    whole = padded(method, around[0])
    z, z0 = rows(method.text.clip.encode_text(whole)), rows(tower.encode_text(whole))
    scale = tower.logit_scale.exp().item()
    f0 = rows(method.teacher.image.features(images))
    own, held = table(scale, f, z), table(scale, f0, z0)
    for i, j in ((i, j) for i in range(8) for j in range(8) if labels[i] == labels[j]):
        own[i][j] = held[i][j] = -1e8
    close(got["star"], 0.6 * divergence(held, own))


def test_the_weight_of_starft_falls_by_the_epoch(tiny_clip, monkeypatch):
    method, seen = StarFT(tiny_clip, star_weight=0.6), []
    monkeypatch.setattr(StarFT, "trainer", SimpleNamespace(max_epochs=3))
    for epoch in range(3):
        monkeypatch.setattr(StarFT, "current_epoch", epoch)
        method.on_train_batch_start(None, 0)
        seen.append(method.weight.item())
    assert seen == pytest.approx([0.4, 0.2, 0], abs=1e-6)
    # Of a run that is limited by steps, by these.
    steps = SimpleNamespace(max_epochs=-1, estimated_stepping_batches=8)
    monkeypatch.setattr(StarFT, "trainer", steps)
    monkeypatch.setattr(StarFT, "global_step", 2)
    method.on_train_batch_start(None, 0)
    assert method.weight.item() == pytest.approx(0.45)


def test_captions_with_surroundings_are_those_of_the_tokenizer(tiny_clip):
    text, tokenizer = tiny_clip.text_tower()
    names, phrases = ["three", "a b"], ["at night", "in a very long and dark and wide forest"]
    templates = ["a {}.", "{}", "a photo of a big red {}."]
    around = Around(text, tokenizer, Captions(text, tokenizer, names, templates), phrases)
    places = [(k, t, p) for k in range(2) for t in range(3) for p in range(2)]
    got = around.joined(*(torch.tensor(each) for each in zip(*places)))
    texts = [f"{templates[t].format(names[k]).rstrip('.')} {phrases[p]}." for k, t, p in places]
    expected = tokenizer(texts)
    assert torch.equal(torch.nn.functional.pad(got, (0, 16 - got.shape[1])), expected)
    # Some of them are cut, some are not.
    assert expected[:, -1].bool().any() and not expected[:, -1].bool().all()


def test_the_average_of_carot_follows_in_jumps(tiny_clip):
    method = CaRot(tiny_clip, every=5)
    shares = [method.share(step, 100) for step in range(100)]
    assert [step for step, share in enumerate(shares) if share] == list(range(0, 100, 5))
    # What is left rises from 0.05 to 0.9 within the first 20 steps.
    assert shares[0] == pytest.approx(0.95)
    assert shares[10] == pytest.approx(1 - (0.05 + 0.85 / 2))
    assert shares[20] == shares[95] == pytest.approx(0.1)


def test_the_average_of_tracer_is_the_weighted_mean_of_all_weights(tiny_clip):
    from scipy.stats import beta

    method = TRACER(tiny_clip, shape=0.5)
    steps, generator = 7, torch.Generator().manual_seed(0)
    points = torch.rand(steps + 1, generator=generator, dtype=torch.float64)
    mean = points[0].clone()
    for step in range(steps):
        mean += method.share(step, steps) * (points[step + 1] - mean)
    weights = beta(0.5, 0.5).pdf((torch.arange(steps + 1).numpy() + 0.5) / (steps + 1))
    expected = (torch.tensor(weights) * points).sum() / weights.sum()
    assert float(mean) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_without_a_text_tower_is_refused_in_one_line(kind, small_cnn, tiny_clip):
    with pytest.raises(InputError, match=f"zero-shot head for {kind.__name__}.*open_clip") as told:
        kind(small_cnn)
    assert "\n" not in str(told.value)
    # What a file holds is the image tower with its head.
    again = OpenClipClassifier.from_spec(tiny_clip.spec)
    with pytest.raises(InputError, match=r"text tower for this method.*--model open_clip"):
        kind(again)


def test_what_has_no_meaning_is_refused(tiny_clip):
    with pytest.raises(InputError, match="no mixup or cutmix for FLYP"):
        FLYP(tiny_clip, mixup=0.2)
    with pytest.raises(InputError, match="at least 2 images in a batch for CaRot"):
        CaRot(tiny_clip).check(DigitsData(batch_size=1))
    with pytest.raises(InputError, match="1 text of 1 to 14 tokens"):
        LipsumFT(tiny_clip, length=15)
    with pytest.raises(InputError, match="every of at least 1"):
        CaRot(tiny_clip, every=0)
    with pytest.raises(InputError, match="surroundings"):
        StarFT(tiny_clip, surroundings=[])
    single = OpenClipClassifier("tiny-clip", None, ["a", "b"], ["{}"])
    with pytest.raises(InputError, match="at least 2 templates"):
        CARFT(single)


@pytest.mark.parametrize(("kind", "part"), [(CARFT, "context"), (LipsumFT, "lipsum")])
def test_mixing_changes_the_task_alone(tiny_clip, batch, kind, part, monkeypatch):
    methods = kind(tiny_clip), kind(tiny_clip, mixup=0.5)
    moved(tiny_clip)
    if kind is LipsumFT:
        texts = methods[0].drawn()
        monkeypatch.setattr(kind, "drawn", lambda self: texts)
    plain, mixed = (method.losses(*batch) for method in methods)
    close(mixed[part], plain[part].item())
    assert plain["task"] != mixed["task"]
    assert methods[1].passes() == 2 * methods[0].passes() - 1 == 7


@pytest.mark.parametrize(
    "kind",
    [FLYP, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind is not FLYP)],
)
def test_what_a_step_costs_is_counted(tiny_clip, kind, monkeypatch):
    # As on a device, where all captions are as long as the longest.
    monkeypatch.setattr("cfmask.text.looks_are_free", lambda values: False)
    monkeypatch.setattr("cfmask.methods.starft.looks_are_free", lambda values: False)
    # Texts of a whole step are not counted; one is next to nothing.
    method = kind(tiny_clip, texts=1, length=1) if kind is LipsumFT else kind(tiny_clip)
    forward, text = forward_cost(tiny_clip), text_cost(method)
    images, labels = torch.rand(24, 3, 48, 48), torch.arange(24) % 10
    weights = [*method.parameters(), *method.buffers()]
    # As one operation, attention would not be counted.
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    math_alone, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    with math_alone, counter, SavedBytes(weights) as saved:
        torch.stack(list(method.losses(images, labels).values())).sum().backward()
    # Pixels get no gradient.
    pixels = 2 * tiny_clip.encoder.conv1.weight.numel() * 36
    estimate = method.passes() * forward.flops + text.flops - pixels
    assert estimate == pytest.approx(counter.get_total_flops() / 24, rel=0.02)
    kept = memory(method, 24, forward, text)["activations"]
    assert kept == pytest.approx(saved.peak, rel=0.25)
    assert (text.flops > 0) == (kind not in (CARFT, LipsumFT))
