"""Pseudo-labels: against a loop over pixels, where they may stand, and what they never read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.toy_dataset import write_sample
from torch import Tensor
from torch.nn import functional as F

from tagclip.data import Protocol, ZeroShotDatasetMapper
from tagclip.errors import DatasetError
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.losses.seg_loss import SegTargets
from tagclip.modeling.self_training import SelfTraining, best_class, pseudo_label_shares

IGNORE = 255
SEEN = torch.tensor([True, False, True, True, False, True])
SIZE = (24, 40)


def rule(region: str = "unlabeled", *, gated: bool = True, **changes: object) -> SelfTraining:
    gate = Gate("both" if gated else "none", bias=0.1)
    return replace(SelfTraining(region, 0.5, gate, "seen", 256), **changes)


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, SegTargets, Tensor]:
    """Logits of 2 images, and labels with seen classes, ignored pixels and padding."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, len(SEEN), 3, 5, generator=generator) * 2
    trusty = torch.randn(2, 1, 3, 5, generator=generator) * 2
    labels = torch.randint(0, 9, (2, *SIZE), generator=generator, dtype=torch.uint8)
    is_seen = torch.isin(labels, SEEN.nonzero().flatten().to(torch.uint8))
    novel = torch.isin(labels, (~SEEN).nonzero().flatten().to(torch.uint8))
    labels[~is_seen] = IGNORE
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[1, 20:] = False
    labels[~valid], novel[~valid] = IGNORE, False
    return logits, trusty, SegTargets(labels, valid, is_seen & valid, IGNORE), novel


def full_scores(logits: Tensor) -> np.ndarray:
    planes = F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)
    return 1 / (1 + np.exp(-planes.numpy()))


def naive_unlabeled(
    logits: Tensor, trusty: Tensor | None, targets: SegTargets, gated: bool, threshold: float
) -> np.ndarray:
    """One pixel after another, in float64, from the words of docs/method.md."""
    scores, labels = full_scores(logits), targets.labels.numpy().copy()
    weight = full_scores(trusty)[:, 0] if gated and trusty is not None else None
    for image, y, x in np.ndindex(*labels.shape):
        if labels[image, y, x] != IGNORE or not targets.valid[image, y, x]:
            continue
        compared = []
        for k, seen in enumerate(SEEN.tolist()):
            score = scores[image, k, y, x] - (0.1 if seen else 0)
            if weight is not None:
                w = weight[image, y, x]
                score *= w if seen else 1 - w
            compared.append(score)
        best = int(np.argmax(compared))
        if not SEEN[best] and scores[image, best, y, x] >= threshold:
            labels[image, y, x] = best
    return labels


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_unlabeled_equals_a_loop_over_pixels(scene, gated, with_token, threshold) -> None:
    logits, trusty, targets, _ = scene
    trusty = trusty if with_token else None
    expected = naive_unlabeled(logits, trusty, targets, gated, threshold)
    result = rule(gated=gated, threshold=threshold)(logits, trusty, SEEN, targets)
    np.testing.assert_array_equal(result.labels, expected)
    written = result.labels != targets.labels
    assert 0 < written.sum() < (targets.labels == IGNORE).sum()
    assert not SEEN[result.labels[written].long()].any()
    # Nothing but the labels changes, and not in place.
    assert result.trusty is targets.trusty and result.valid is targets.valid
    assert (targets.labels[written] == IGNORE).all()


def test_a_score_of_the_threshold_is_enough() -> None:
    """The sigmoid of 0 is the threshold in every bit."""
    logits = torch.full((1, len(SEEN), 2, 2), -9.0)
    logits[:, 1] = 0
    ignored = torch.full((1, *SIZE), IGNORE, dtype=torch.uint8)
    targets = SegTargets(ignored, ignored >= 0, ignored < 0, IGNORE)
    result = rule(gated=False, threshold=0.5)(logits, None, SEEN, targets)
    assert (result.labels == 1).all()
    above = rule(gated=False, threshold=0.5 + 2**-20)(logits, None, SEEN, targets)
    assert (above.labels == IGNORE).all()


def test_novel_fills_every_unseen_pixel_with_the_best_unseen_class(scene) -> None:
    logits, trusty, targets, novel = scene
    result = rule("novel", threshold=1.0)(logits, trusty, SEEN, targets, novel)
    unseen = np.flatnonzero(~SEEN.numpy())
    best = unseen[full_scores(logits)[:, unseen].argmax(axis=1)]
    np.testing.assert_array_equal(
        result.labels, np.where(novel, best, targets.labels).astype(np.uint8)
    )
    assert novel.any()


@pytest.mark.parametrize("region", ["unlabeled", "novel"])
def test_memory_never_changes_the_result(scene, region: str) -> None:
    logits, trusty, targets, novel = scene
    large = rule(region)(logits, trusty, SEEN, targets, novel)
    small = rule(region, workspace_mib=0)(logits, trusty, SEEN, targets, novel)
    assert torch.equal(large.labels, small.labels)


def test_ties_go_to_the_first_class_across_chunks() -> None:
    logits = torch.zeros(4, 2, 2)
    best, score = best_class(logits, (4, 4), lambda scores, classes: scores, 0)
    assert not best.any()
    assert (score == 0.5).all()


def test_no_gradient_comes_from_a_pseudo_label(scene) -> None:
    logits, trusty, targets, novel = scene
    result = rule()(logits.requires_grad_(), trusty.requires_grad_(), SEEN, targets, novel)
    assert not result.labels.requires_grad and result.labels.grad_fn is None


def test_shares_are_percent_of_the_pixels_inside_the_images(scene) -> None:
    targets = scene[2]
    labels = targets.labels.clone()
    places = (labels[0] == IGNORE).nonzero()[:7]
    labels[0, places[:5, 0], places[:5, 1]] = 4
    labels[0, places[5:, 0], places[5:, 1]] = 1
    shares = pseudo_label_shares(targets, replace(targets, labels=labels), list("abcdef"))
    novel = torch.zeros_like(targets.valid)
    novel[0, places[3:, 0], places[3:, 1]] = True
    compared = pseudo_label_shares(targets, replace(targets, labels=labels), list("abcdef"), novel)
    assert compared == shares | {"pseudo_labels_on_unseen_pixels": pytest.approx(400 / 7)}
    assert "pseudo_labels_on_unseen_pixels" not in pseudo_label_shares(
        targets, targets, list("abcdef"), novel
    )
    pixels = 24 * 40 + 20 * 40
    assert shares == pytest.approx(
        {"pseudo_labels": 700 / pixels, "pseudo_labels/b": 200 / pixels,
         "pseudo_labels/e": 500 / pixels}
    )  # fmt: skip


def transductive(cfg: CfgNode, **rule: object) -> CfgNode:
    cfg.DATASETS.ZERO_SHOT.SETTING = "transductive"
    for key, value in rule.items():
        cfg.MODEL.TAGCLIP.SELF_TRAINING[key] = value
    return cfg


def batch(labels: Tensor) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, *labels.shape), generator=generator, dtype=torch.uint8)
    return [{"image": image, "sem_seg": labels, "file_name": "a.png"}]


def test_the_model_asks_all_classes_and_logs_what_it_wrote(tiny_cfg: CfgNode) -> None:
    """In `tiny5`, dog (1) and sky (3) are unseen."""
    torch.manual_seed(0)
    model = build_model(transductive(tiny_cfg, THRESHOLD=0.0))
    assert len(model.train_vocabulary) == 5
    assert model.trusted_labels.nonzero().flatten().tolist() == [0, 2, 4]
    labels = torch.full((64, 50), IGNORE, dtype=torch.uint8)
    labels[:20] = 2
    seen_by_loss = []
    model.sem_seg_head.loss.register_forward_hook(lambda _, args, __: seen_by_loss.append(args))
    with EventStorage() as storage:
        losses = model(batch(labels))
    assert all(torch.isfinite(loss) for loss in losses.values())
    class_logits, _, targets = seen_by_loss[0]
    assert class_logits.shape[1] == 5
    assert set(targets.labels.unique().tolist()) <= {1, 2, 3, IGNORE}
    assert (targets.labels[0, :20, :50] == 2).all()
    assert (targets.labels[0, :, 50:] == IGNORE).all()
    # The trusty target stays what the data says.
    assert torch.equal(targets.trusty[0], F.pad(labels == 2, (0, 14)))
    share = storage.latest()["pseudo_labels"][0]
    written = (targets.labels[0, 20:, :50] != IGNORE).sum().item()
    assert written and share == pytest.approx(100 * written / (64 * 50))


def test_comparing_pseudo_labels_with_the_truth_teaches_nothing(
    tiny_cfg: CfgNode, tmp_path
) -> None:
    """Masks of unseen pixels come only where the key allows them, and only the log sees them."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    label = random.choice([0, 1, 3, 255], (64, 64)).astype(np.uint8)
    sample = write_sample(tmp_path, "x", image, label)
    results, logs = [], []
    for allowed in (False, True):
        cfg = transductive(tiny_cfg, THRESHOLD=0.0)
        cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = allowed
        assert ("compared with" in Protocol(cfg).summary) == allowed
        np.random.seed(0)
        inputs = [ZeroShotDatasetMapper(cfg, is_train=True)(sample)]
        assert ("novel_mask" in inputs[0]) == allowed
        torch.manual_seed(0)
        model = build_model(cfg)
        written = []
        model.sem_seg_head.loss.register_forward_hook(lambda _, args, __: written.append(args[2]))  # noqa: B023
        with EventStorage() as storage:
            results.append(model(inputs))
        logs.append({name: value for name, (value, _) in storage.latest().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    # What is written where the data say nothing: right if an unseen class stands there.
    chosen = written[0].labels[0] != inputs[0]["sem_seg"]
    assert chosen.any() and inputs[0]["novel_mask"].any()
    share = logs[1].pop("pseudo_labels_on_unseen_pixels")
    assert share == pytest.approx(100 * inputs[0]["novel_mask"][chosen].double().mean().item())
    assert logs[0] == logs[1]


def test_novel_region_and_seen_token_in_one_run(tiny_cfg: CfgNode) -> None:
    """The token is trained on labelled seen pixels, whatever says where pseudo-labels go."""
    tiny_cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = True
    model = build_model(transductive(tiny_cfg, REGION="novel"))
    labels = torch.full((64, 64), IGNORE, dtype=torch.uint8)
    labels[:20] = 4
    inputs = batch(labels)
    with pytest.raises(DatasetError, match=r"a\.png: found no novel_mask"):
        model(inputs)
    inputs[0]["novel_mask"] = torch.zeros(64, 64, dtype=torch.bool)
    inputs[0]["novel_mask"][30:40] = True
    seen_by_loss = []
    model.sem_seg_head.loss.register_forward_hook(lambda _, args, __: seen_by_loss.append(args[2]))
    model(inputs)
    rows = seen_by_loss[0].labels[0]
    assert torch.isin(rows[30:40], torch.tensor([1, 3], dtype=torch.uint8)).all()
    assert (rows[20:30] == IGNORE).all() and (rows[40:] == IGNORE).all()
    assert torch.equal(seen_by_loss[0].trusty[0], labels == 4)


@pytest.mark.parametrize("region", ["unlabeled", "novel"])
def test_no_unseen_label_leaves_the_mapper(tiny_cfg: CfgNode, tmp_path, region: str) -> None:
    """Scrambling which unseen class a pixel has changes nothing that the model gets."""
    cfg = transductive(tiny_cfg, REGION=region)
    cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = region == "novel"
    cfg.INPUT.COLOR_AUG_SSD = False
    mapper = ZeroShotDatasetMapper(cfg, is_train=True)
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (70, 80, 3), dtype=np.uint8)
    label = random.choice([0, 1, 2, 3, 4, 255], (70, 80)).astype(np.uint8)
    swap = np.arange(256, dtype=np.uint8)
    swap[[1, 3]] = 3, 1
    samples = []
    for name, values in (("a", label), ("b", swap[label])):
        np.random.seed(0)
        samples.append(mapper(write_sample(tmp_path / name, "x", image, values)))
    for key in {"image", "sem_seg", "novel_mask"} & samples[0].keys():
        assert torch.equal(samples[0][key], samples[1][key]), key
    assert set(samples[0]["sem_seg"].unique().tolist()) <= {0, 2, 4, 255}
    assert ("novel_mask" in samples[0]) == (region == "novel")
