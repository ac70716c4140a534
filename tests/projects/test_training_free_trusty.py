"""projects/TrainingFree with a convolutional trusty head: CLIP stays, only the head is trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.naive_last_block import METHODS
from helpers.paths import REPOSITORY
from helpers.tiny_run import (
    changed,
    equal,
    losses,
    own_loggers,
    run_arguments,
    train,
    weights,
    write_run_config,
    write_tiny_dataset,
)
from torch.nn import functional as F

from tagclip import load_config
from tagclip.checkpoint.checkpointer import trained_state
from tagclip.errors import ConfigError
from tagclip.modeling.heads.conv_trusty import PADDING, UNLABELLED, ConvTrustyHead
from tagclip.modeling.losses.seg_loss import SegTargets
from tagclip.projects import import_projects
from tagclip.projects.training_free import TrainingFreeHead

PREFIX = "sem_seg_head.trusty_head."
LEAVES = sorted(REPOSITORY.glob("projects/TrainingFree/configs/[!B]*_convtrust.yaml"))


@pytest.fixture
def cfg(maskclip_cfg: CfgNode) -> CfgNode:
    """MaskCLIP with a trusty head; its project is imported."""
    import_projects(["training_free"])
    return changed(
        maskclip_cfg,
        "MODEL.TAGCLIP.TRUSTY.ENABLED", True,
        "MODEL.TAGCLIP.TRUSTY.KIND", "conv",
        "MODEL.TAGCLIP.TRUSTY.CONV.STEPS", 4,
        "MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES", 3,
        "MODEL.TAGCLIP.TEST.GATE", "both",
    )  # fmt: skip


def small_head(**options: Any) -> TrainingFreeHead:
    torch.manual_seed(0)
    return TrainingFreeHead(scale=19.5, trusty_head=ConvTrustyHead(dim=8, channels=3), **options)


def unit_features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"clip_dense": F.normalize(torch.randn(2, 8, 3, 4, generator=generator), dim=1)}


@torch.no_grad()
def test_the_map_comes_beside_the_same_class_logits() -> None:
    features, classes = unit_features(), torch.eye(8)[:5]
    head = small_head()
    (logits, trusty), found = head(features, classes)
    (alone, nothing), _ = TrainingFreeHead(scale=19.5)(features, classes)
    assert nothing is None and found == {} and torch.equal(logits, alone)
    assert torch.equal(trusty, head.trusty_head(features["clip_dense"]))
    assert trusty.shape == (2, 1, 3, 4) and trusty.std() > 0.01


def test_it_keeps_vectors_and_every_second_label() -> None:
    head, features = small_head(label_stride=2), unit_features()
    labels = torch.arange(2 * 6 * 8).view(2, 6, 8) % 7
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[:, 4:] = False
    targets = SegTargets(labels=labels, valid=valid, trusty=labels < 4, ignore=255)
    assert head(features, torch.eye(8), targets) == (None, {})
    (batch,) = head.trusty_head.replay.batches
    assert (batch.size, batch.stride, batch.labels.shape) == ((6, 8), 2, (2, 3, 4))
    for n in range(2):
        for row in range(3):
            for column in range(4):
                y, x = 2 * row + 1, 2 * column + 1
                label = int(labels[n, y, x])
                expected = PADDING if y >= 4 else label if label < 4 else UNLABELLED
                assert int(batch.labels[n, row, column]) == expected
    assert (batch.features.float() - features["clip_dense"]).abs().max() < 1e-3


def test_training_changes_the_trusty_head_alone(cfg: CfgNode, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path)
    cfg = changed(
        cfg,
        "DATASETS.TEST", (),
        "SOLVER.IMS_PER_BATCH", 3,
        "SOLVER.MAX_ITER", 6,
        "SOLVER.WARMUP_ITERS", 1,
        "MODEL.TAGCLIP.TRUSTY.CONV.BASE_LR", 0.01,
        "MODEL.TAGCLIP.TRUSTY.CONV.STEPS", 40,
    )  # fmt: skip
    trainer = train(cfg)
    before = weights(build_model(cfg))
    after = weights(trainer.model)
    own = {name for name in after if name.startswith(PREFIX)}
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert own == trained and len(own) == 7
    rest = after.keys() - own
    assert equal({name: after[name] for name in rest}, {name: before[name] for name in rest})
    curve = losses(trainer)
    assert all(found.keys() == {"loss_trusty"} for found in curve.values())
    fresh, learned = (
        build_model(cfg).sem_seg_head.trusty_head,
        trainer.model.sem_seg_head.trusty_head,
    )
    kept = learned.replay.batches
    assert len(kept) == 3
    torch.manual_seed(0)
    with torch.no_grad():
        assert sum(map(learned.loss, kept)) < sum(map(fresh.loss, kept)) - 0.3


def test_a_run_trains_saves_and_evaluates(
    cfg: CfgNode, train_net: ModuleType, tmp_path: Path
) -> None:
    path, output = write_run_config(cfg, tmp_path), tmp_path / "run"
    with own_loggers():
        results = train_net.main(run_arguments(path, "OUTPUT_DIR", output))
    saved = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert saved and all(name.startswith(PREFIX) for name in saved)
    opts = ("OUTPUT_DIR", tmp_path / "again", "MODEL.WEIGHTS", output / "model_final.pth")
    with own_loggers():
        again = train_net.main(run_arguments(path, *opts, eval_only=True))
    assert again["sem_seg"] == results["sem_seg"]
    assert again["sem_seg"]["trusty-AUROC"] > 0
    (found,) = (tmp_path / "again").glob("inference/*/metrics.json")
    assert json.loads(found.read_text())["metrics"]["hIoU"] == again["sem_seg"]["hIoU"]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.TAGCLIP.TRUSTY.KIND", "token"), "TRUSTY.KIND: found 'token' .* expected conv"),
        (("MODEL.TAGCLIP.TRUSTY.TARGET", "novel"), "TRUSTY.TARGET: found 'novel' .*expected seen"),
        (("DATASETS.ZERO_SHOT.SETTING", "transductive"), "'transductive' .* expected inductive"),
    ],
)
def test_what_does_not_fit_is_said(cfg: CfgNode, opts: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_model(changed(cfg, *opts))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_shipped_configs_add_the_head_and_the_gate(path: Path, tiny_clip_json: str) -> None:
    is_minibench = "minibench" in path.stem
    small = [] if is_minibench else ["MODEL.CLIP.NAME", tiny_clip_json, "MODEL.CLIP.PRETRAINED", ""]
    cfg = load_config(path, ["MODEL.DEVICE", "cpu", *small])
    import_projects(cfg.PROJECTS)
    model = build_model(cfg)
    assert {name.startswith(PREFIX) for name in trained_state(model)} == {True}
    test = cfg.MODEL.TAGCLIP.TEST
    assert (test.GATE, test.GATE_FORM, test.SEEN_BIAS) == ("both", "product", 0.0)
    plain = load_config(path.with_name(path.name.replace("_convtrust", "")))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (plain.DATASETS.TRAIN, plain.DATASETS.TEST)


def test_every_dataset_to_train_on_has_a_config_of_each_method() -> None:
    assert len(LEAVES) == 6 * len(METHODS)
