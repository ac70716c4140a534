"""The convolutional trusty head: its computation, its weights of pixels, what it keeps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from torch import Tensor
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.heads import MaskDecoder, RelationDescriptor, TagCLIPHead
from tagclip.modeling.heads.conv_trusty import (
    PADDING,
    UNLABELLED,
    ConvTrustyHead,
    FeatureReplay,
    balanced_bce,
    pixel_weights,
)
from tagclip.modeling.losses.seg_loss import SegLoss, SegTargets

DIM = 16


def make_conv(**options: Any) -> ConvTrustyHead:
    torch.manual_seed(1)
    return ConvTrustyHead(dim=DIM, **options)


def make_head(conv: ConvTrustyHead | None, **options: Any) -> TagCLIPHead:
    torch.manual_seed(0)
    return TagCLIPHead(
        relation=RelationDescriptor(dim=DIM, kind="cls_text"),
        decoder=MaskDecoder(dim=DIM, num_heads=4, layers="ann", dropout=0.0),
        loss=SegLoss(**options),
        dim=DIM,
        feature_scale=4.0,
        trusty_enabled=False,
        trusty_head=conv,
    )


def random_features(images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    dense = torch.randn(images, DIM, 3, 5, generator=generator)
    whole = torch.randn(images, DIM, generator=generator)
    return {"clip_dense": F.normalize(dense, dim=1), "clip_global": F.normalize(whole, dim=1)}


def naive_head(conv: ConvTrustyHead, features: np.ndarray) -> np.ndarray:
    """(D, h, w) float64 -> (h, w), patch by patch, with the statistics that the head has noted."""
    p = {name: t.detach().double().numpy() for name, t in conv.state_dict().items()}
    mean, var = p["norm.running_mean"], p["norm.running_var"]
    x = (features - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
    _, height, width = x.shape
    matrix = {name: p[f"{name}.weight"][..., 0, 0] for name in ("expand", "output", "skip")}
    first = np.einsum("cd,dyx->cyx", matrix["expand"], x) + p["expand.bias"][:, None, None]
    first = np.maximum(first, 0)
    result = np.empty((height, width))
    for y in range(height):
        for column in range(width):
            hidden = p["context.bias"].copy()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    v = first[
                        :, min(max(y + dy, 0), height - 1), min(max(column + dx, 0), width - 1)
                    ]
                    hidden += p["context.weight"][:, :, dy + 1, dx + 1] @ v
            hidden = np.maximum(hidden, 0)
            result[y, column] = (
                (matrix["output"] @ hidden)[0]
                + p["output.bias"][0]
                + (matrix["skip"] @ x[:, y, column])[0]
            )
    return result


def test_logits_equal_a_patch_by_patch_computation() -> None:
    conv = make_conv(channels=6)
    conv.norm.running_mean.uniform_(-1, 1)
    conv.norm.running_var.uniform_(0.5, 2)
    features = random_features()["clip_dense"]
    found = conv(features).detach()
    for image in range(2):
        expected = naive_head(conv, features[image].double().numpy())
        assert np.allclose(found[image, 0].numpy(), expected, atol=1e-5)


def test_inference_is_the_same_in_both_modes_and_changes_nothing() -> None:
    conv = make_conv(dropout=0.5)
    features = random_features()["clip_dense"]
    before = {name: t.clone() for name, t in conv.state_dict().items()}
    assert torch.equal(conv.train()(features), conv.eval()(features))
    assert all(torch.equal(t, before[name]) for name, t in conv.state_dict().items())
    assert not torch.equal(conv(features, learning=True), conv(features, learning=True))
    assert not torch.equal(conv.norm.running_mean, before["norm.running_mean"])


def naive_weights(labels: np.ndarray) -> np.ndarray:
    weights = np.zeros(labels.shape)
    counts = {c: int((labels == c).sum()) for c in set(labels[labels >= 0].tolist())}
    mass = sum(n / math.sqrt(max(n, 50)) for n in counts.values())
    for place, label in np.ndenumerate(labels):
        if label >= 0:
            weights[place] = 0.5 / math.sqrt(max(counts[label], 50)) / mass
        elif label == UNLABELLED:
            weights[place] = 0.5 / (labels == UNLABELLED).sum()
    return weights


def random_labels(*kept: int, size: tuple[int, int, int] = (2, 12, 20)) -> Tensor:
    values = torch.tensor(kept, dtype=torch.int16)
    generator = torch.Generator().manual_seed(3)
    # Squared, so that the first values are frequent and the last ones rare.
    return values[(torch.rand(size, generator=generator) ** 2 * len(kept)).long()]


@pytest.mark.parametrize(
    "kept", [(0, 1, 2, UNLABELLED, PADDING), (UNLABELLED, 4), (0,), (UNLABELLED,), (PADDING,)]
)
def test_pixel_weights_equal_those_of_a_loop(kept: tuple[int, ...]) -> None:
    labels = random_labels(*kept)
    assert np.allclose(pixel_weights(labels).numpy(), naive_weights(labels.numpy()), rtol=1e-5)


def test_both_sides_have_half_of_the_mass() -> None:
    labels = random_labels(0, 1, UNLABELLED, PADDING)
    weights = pixel_weights(labels)
    assert weights[labels >= 0].sum().item() == pytest.approx(0.5, abs=1e-6)
    assert weights[labels == UNLABELLED].sum().item() == pytest.approx(0.5, abs=1e-6)
    assert weights[labels == PADDING].sum() == 0


def test_the_loss_is_the_weighted_cross_entropy() -> None:
    labels = random_labels(0, 3, UNLABELLED, PADDING)
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(4))
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    seen = (labels >= 0).numpy()
    expected = (naive_weights(labels.numpy()) * -np.log(np.where(seen, p, 1 - p))).sum()
    assert balanced_bce(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def batch_targets(size: tuple[int, int] = (24, 40)) -> SegTargets:
    labels = random_labels(0, 1, 255, size=(2, *size)).long()
    valid = torch.ones(2, *size, dtype=torch.bool)
    valid[1, :, 30:], labels[1, :, 30:] = False, 255
    return SegTargets(labels=labels, valid=valid, trusty=labels < 255, ignore=255)


def test_what_is_kept_are_scaled_vectors_and_seen_labels() -> None:
    head, features, targets = make_head(make_conv(), stride=4), random_features(), batch_targets()
    head(features, torch.randn(4, DIM), targets)
    (batch,) = head.trusty_head.replay.batches
    assert batch.features.dtype is torch.float16 and not batch.features.requires_grad
    assert torch.allclose(batch.features.float(), 4 * features["clip_dense"], rtol=1e-3)
    assert batch.size == (24, 40) and batch.stride == 4
    picked = targets.labels[:, 2::4, 2::4]
    expected = torch.where(picked < 255, picked, UNLABELLED)
    expected[1, :, 7:] = PADDING
    assert torch.equal(batch.labels.long(), expected)


def test_labels_that_are_not_trusted_count_as_unlabelled() -> None:
    """Pseudo-labels of unseen classes, in the transductive stage."""
    head, targets = make_head(make_conv()), batch_targets()
    targets.trusty[targets.labels == 1] = False
    head(random_features(), torch.randn(4, DIM), targets)
    assert not (head.trusty_head.replay.batches[0].labels == 1).any()


def test_the_class_path_is_that_of_a_head_without_it() -> None:
    features, classes = random_features(), F.normalize(torch.randn(4, DIM), dim=1)
    plain, conv = make_head(None), make_head(make_conv())
    results = []
    for head in (plain, conv):
        leaf = {name: t.clone().requires_grad_() for name, t in features.items()}
        _, losses = head(leaf, classes, batch_targets())
        assert losses.keys() == {"loss_mask", "loss_dice"}
        sum(losses.values()).backward()
        results.append([t.grad for t in leaf.values()] + [p.grad for p in plain_parameters(head)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(p.grad is None for p in conv.trusty_head.parameters())


def test_fifty_pixels_are_where_a_class_stops_to_be_rare() -> None:
    counts = (1, 50, 51)
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))[None, None]
    weights = [pixel_weights(labels)[labels == c].unique().item() for c in range(3)]
    assert weights[0] == weights[1] == pytest.approx(weights[2] * math.sqrt(51 / 50), rel=1e-6)


def test_it_learns_with_the_statistics_of_the_batch_and_notes_them() -> None:
    conv = make_conv(dropout=0.0)
    features = 3 + 2 * torch.randn(2, DIM, 3, 5, generator=torch.Generator().manual_seed(4))
    kept = features.half().float()
    labels = torch.randint(-1, 2, (2, 12, 20), generator=torch.Generator().manual_seed(5))
    conv.replay.add(features, labels, (12, 20), 1)
    (batch,) = conv.replay.batches
    first = conv.loss(batch)
    mean, var = kept.mean(dim=(0, 2, 3)), kept.var(dim=(0, 2, 3))
    torch.testing.assert_close(conv.norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(conv.norm.running_var, 0.9 + 0.1 * var)
    # What is noted has no part in learning, and its own logits note nothing.
    assert torch.equal(conv.loss(batch), first)
    noted = conv.norm.running_mean.clone()
    conv(features)
    assert torch.equal(conv.norm.running_mean, noted)


def test_a_part_joins_the_batch_before_it() -> None:
    replay, labels = FeatureReplay(2), torch.zeros(2, 6, 6)
    parts = [torch.full((2, 2, 3, 3), float(value)) for value in range(4)]
    for number, part in enumerate(parts):
        replay.add(part, labels + number, (6, 6), 1, joins=number % 2 == 1)
    first, second = replay.batches
    assert torch.equal(first.features, torch.cat(parts[:2]).half())
    assert torch.equal(second.features, torch.cat(parts[2:]).half())
    assert second.labels[:, 0, 0].tolist() == [2, 2, 3, 3] and second.size == (6, 6)


def plain_parameters(head: TagCLIPHead) -> list[torch.nn.Parameter]:
    return [p for name, p in head.named_parameters() if not name.startswith("trusty_head.")]


def test_the_replay_forgets_the_oldest_and_is_restored() -> None:
    replay = FeatureReplay(2)
    for value in range(3):
        replay.add(torch.full((1, 2, 3, 3), float(value)), torch.zeros(1, 6, 6), (6, 6), 1)
    assert [batch.features[0, 0, 0, 0].item() for batch in replay.batches] == [1, 2]
    other = FeatureReplay(2)
    other.load_state_dict(replay.state_dict())
    assert [batch.features[0, 0, 0, 0].item() for batch in other.batches] == [1, 2]
    drawn = {replay.draw().features[0, 0, 0, 0].item() for _ in range(50)}
    assert drawn == {1, 2}
    single = FeatureReplay(1)
    single.add(torch.zeros(1, 2, 3, 3), torch.zeros(1, 6, 6), (6, 6), 1)
    assert single.state_dict() == {"batches": []}


def test_the_config_builds_it(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.TAGCLIP.TRUSTY.KIND = "conv"
    tiny_cfg.MODEL.TAGCLIP.TRUSTY.CONV.CHANNELS = 5
    tiny_cfg.MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES = 3
    shape = {"clip_dense": ShapeSpec(channels=32), "clip_global": ShapeSpec(channels=32)}
    head = build_sem_seg_head(tiny_cfg, shape)
    assert head.trusty_token is None
    assert head.trusty_head.expand.weight.shape == (5, 32, 1, 1)
    assert head.trusty_head.replay.batches.maxlen == 3
    tiny_cfg.MODEL.TAGCLIP.TRUSTY.TARGET = "novel"
    with pytest.raises(ConfigError, match="TRUSTY.TARGET: found 'novel' with KIND conv"):
        build_sem_seg_head(tiny_cfg, shape)
    tiny_cfg.MODEL.TAGCLIP.TRUSTY.KIND = "mlp"
    with pytest.raises(ConfigError, match="TRUSTY.KIND: found 'mlp', expected 'token' or"):
        build_sem_seg_head(tiny_cfg, shape)


@pytest.mark.parametrize("key", ["channels", "replay_batches"])
def test_less_than_one_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"CONV.{key.upper()}: found 0, expected a whole"):
        make_conv(**{key: 0})
