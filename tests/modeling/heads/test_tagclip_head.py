"""The head: what it may and may not depend on, and that all of it is trained."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from helpers.naive_loss import random_targets
from torch import Tensor

from tagclip.modeling.heads import MaskDecoder, RelationDescriptor, TagCLIPHead
from tagclip.modeling.losses.focal import Focal
from tagclip.modeling.losses.seg_loss import SegLoss

DIM = 16


def make_head(
    layers: str = "ann", kind: str = "cls_text", dim: int = DIM, **options: Any
) -> TagCLIPHead:
    torch.manual_seed(0)
    return TagCLIPHead(
        relation=RelationDescriptor(dim=dim, kind=kind),
        decoder=MaskDecoder(dim=dim, num_heads=4, layers=layers, dropout=0.0),
        loss=SegLoss(),
        dim=dim,
        **options,
    )


def unit(*shape: int, axis: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=axis, keepdim=True)


def random_features(size: tuple[int, int] = (4, 4), images: int = 2) -> dict[str, Tensor]:
    return {
        "clip_dense": unit(images, DIM, *size, axis=1),
        "clip_global": unit(images, DIM, axis=1, seed=1),
    }


def class_vectors(classes: int) -> Tensor:
    return unit(classes, DIM, axis=1, seed=2)


@pytest.mark.parametrize("classes", [1, 6, 1000])
@pytest.mark.parametrize("trusty", [True, False])
def test_shapes_and_a_training_step(classes: int, trusty: bool) -> None:
    head = make_head(trusty_enabled=trusty)
    features = random_features((3, 5))
    (logits, trusty_logits), losses = head(features, class_vectors(classes))
    assert losses == {}
    assert logits.shape == (2, classes, 3, 5)
    assert trusty_logits.shape == (2, 1, 3, 5) if trusty else trusty_logits is None
    result, losses = head(features, class_vectors(classes), random_targets(classes, (12, 20)))
    assert result is None
    assert set(losses) == {"loss_mask", "loss_dice"} | ({"loss_trusty"} if trusty else set())
    sum(losses.values()).backward()


@pytest.mark.parametrize("kind", ["cls_text", "none"])
@pytest.mark.parametrize("layers", ["ann", "nnn", "na"])
@pytest.mark.parametrize("trusty", [True, False])
def test_every_parameter_gets_a_gradient(layers: str, kind: str, trusty: bool) -> None:
    head = make_head(layers, kind, trusty_enabled=trusty)
    # Two images with different pixels per class: no gradient cancels by symmetry.
    _, losses = head(random_features(), class_vectors(6), random_targets(6, (16, 16)))
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        # A key bias inside a softmax moves all scores alike.
        if not (name.startswith("decoder.layers.") and name.endswith("key.bias")):
            assert parameter.grad.abs().max() > 1e-6, name


def test_permuting_the_classes_permutes_the_logits() -> None:
    head = make_head("aan")
    classes = class_vectors(7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    (logits, trusty), _ = head(random_features(), classes)
    (permuted, permuted_trusty), _ = head(random_features(), classes[order])
    torch.testing.assert_close(permuted, logits[:, order], rtol=0, atol=1e-6)
    torch.testing.assert_close(permuted_trusty, trusty, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("layers", "independent"), [("nnn", True), ("ann", False), ("n", True)])
def test_other_classes_matter_only_through_self_attention(layers: str, independent: bool) -> None:
    head = make_head(layers)
    features, classes = random_features(), class_vectors(9)
    every = torch.cat(head.layers(features, classes), dim=1)
    some = torch.cat(head.layers(features, classes[[4, 2]]), dim=1)
    assert torch.allclose(some, every[:, [4, 2, -1]], rtol=0, atol=1e-6) == independent


def test_images_do_not_see_each_other() -> None:
    head, classes = make_head(), class_vectors(5)
    features = random_features()
    (both, _), _ = head(features, classes)
    (second, _), _ = head({name: value[1:] for name, value in features.items()}, classes)
    torch.testing.assert_close(second, both[1:], rtol=0, atol=1e-6)


def test_logits_lie_on_the_patch_grid_row_by_row() -> None:
    head, classes = make_head("n"), class_vectors(3)
    features = random_features((3, 5))
    (logits, _), _ = head(features, classes)
    one = {**features, "clip_dense": features["clip_dense"][:, :, 2:3, 1:2]}
    (pixel, _), _ = head(one, classes)
    torch.testing.assert_close(pixel[..., 0, 0], logits[:, :, 2, 1], rtol=0, atol=1e-6)


def test_feature_scale_spares_the_trusty_token() -> None:
    scaled, plain = make_head(feature_scale=2.5), make_head()
    features, classes = random_features(), class_vectors(5)
    larger = {name: 2.5 * value for name, value in features.items()}
    (logits, trusty), _ = scaled(features, classes)
    (want, want_trusty), _ = plain(larger, 2.5 * classes)
    torch.testing.assert_close(logits, want)
    torch.testing.assert_close(trusty, want_trusty)


def test_trusty_token_is_the_last_query() -> None:
    """Class vectors and token take the same path: a class equal to the token gets its logits."""
    head = make_head("nnn")
    features = random_features()
    classes = torch.cat([class_vectors(3), head.trusty_token.detach()])
    (logits, trusty), _ = head(features, classes)
    torch.testing.assert_close(logits[:, 3:], trusty)


def test_size_and_initialisation_of_the_released_head() -> None:
    """Released: 11,720,448 trainable parameters, 684,288 of them prompts, 2,629,120 dead."""
    with torch.device("meta"):
        head = make_head(dim=512)
    assert sum(p.numel() for p in head.parameters()) == 11_720_448 - 684_288 - 2_629_120
    token = make_head(dim=512).trusty_token
    bound = (6 / 513) ** 0.5
    assert token.shape == (1, 512)
    assert 0.95 * bound < token.abs().max() <= bound


def build(cfg: CfgNode) -> TagCLIPHead:
    shapes = {
        "clip_dense": ShapeSpec(channels=32, stride=16),
        "clip_global": ShapeSpec(channels=32),
    }
    return build_sem_seg_head(cfg, shapes)


def test_config_reaches_the_parts(tiny_cfg: CfgNode) -> None:
    tagclip = tiny_cfg.MODEL.TAGCLIP
    tagclip.LAYERS, tagclip.NUM_HEADS, tagclip.DROPOUT, tagclip.RELATION = "na", 2, 0.3, "none"
    tagclip.FEATURE_SCALE, tagclip.TRUSTY.ENABLED = 4.0, False
    loss = tagclip.LOSS
    loss.MASK, loss.DICE, loss.TRUSTY, loss.FOCAL_ALPHA, loss.FOCAL_GAMMA = 1.0, 2.0, 3.0, 0.4, 1.5
    loss.IGNORE_AS_NEGATIVE, loss.STRIDE, loss.WORKSPACE_MIB = False, 3, 7
    head = build(tiny_cfg)
    assert head.relation.kind == "none"
    assert len(head.decoder.layers) == 1
    assert head.decoder.logits.self_attention.heads == 2
    assert head.decoder.layers[0].attention_dropout == 0.3
    assert head.feature_scale == 4.0
    assert head.trusty_token is None
    assert (
        vars(head.loss).items()
        >= {
            "mask_weight": 1.0,
            "dice_weight": 2.0,
            "trusty_weight": 3.0,
            "focal": Focal(0.4, 1.5),
            "ignore_as_negative": False,
            "stride": 3,
            "workspace_mib": 7,
        }.items()
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_a_trusty_token_without_negatives_is_announced(
    tiny_cfg: CfgNode, caplog: pytest.LogCaptureFixture, enabled: bool
) -> None:
    tiny_cfg.MODEL.TAGCLIP.LOSS.IGNORE_AS_NEGATIVE = False
    tiny_cfg.MODEL.TAGCLIP.TRUSTY.ENABLED = enabled
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        build(tiny_cfg)
    warnings = [record for record in caplog.records if "IGNORE_AS_NEGATIVE" in record.message]
    assert len(warnings) == enabled
