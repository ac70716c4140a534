"""Trainings with the relative trusty map: when it is fitted, on what, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_run import (
    UNSEEN,
    VOID,
    changed,
    equal,
    maskclip_parts,
    short_run,
    train,
    train_in_two,
    train_labels,
    weights,
)
from PIL import Image

from tagclip import TagCLIPPredictor, ZeroShotTrainer
from tagclip.analysis.model_cost import ModelAnalysis
from tagclip.errors import ConfigError
from tagclip.export.onnx import WindowModel
from tagclip.modeling.backbone import CLIPViT
from tagclip.projects import import_projects

PREFIX = "sem_seg_head.trusty_relative."
WORDS = ["cat", "dog", "a red bus"]


@pytest.fixture
def cfg(tiny_cfg: CfgNode, tmp_path: Path) -> CfgNode:
    return short_run(
        tiny_cfg, tmp_path,
        "SOLVER.MAX_ITER", 6,
        "SOLVER.BASE_LR", 0.01,
        "MODEL.TAGCLIP.TRUSTY.KIND", "relative",
        "MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES", 12,
        "MODEL.TAGCLIP.TRUSTY.RELATIVE.SAMPLE_IMAGES", 5,
    )  # fmt: skip


def fit_of(trainer: ZeroShotTrainer) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in trainer.model.state_dict().items() if n.startswith(PREFIX)}


def test_the_class_path_ends_as_without_it(cfg: CfgNode) -> None:
    plain = train(cfg, "MODEL.TAGCLIP.TRUSTY.ENABLED", False)
    trainer = train(cfg)
    assert equal(weights(trainer.model), weights(plain.model))
    found = fit_of(trainer)
    assert found[f"{PREFIX}gaussians.counts"].sum() > 0
    assert found[f"{PREFIX}sample_seen"].flatten(1).any(1).all()


def test_workers_do_not_matter(cfg: CfgNode) -> None:
    assert equal(fit_of(train(cfg)), fit_of(train(cfg, "DATALOADER.NUM_WORKERS", 2)))


def test_resume_is_exact(cfg: CfgNode) -> None:
    whole, resumed = train(cfg), train_in_two(cfg, 3)
    assert equal(weights(resumed.model), weights(whole.model))
    assert equal(fit_of(resumed), fit_of(whole))


def test_it_is_blind_to_unseen_labels(cfg: CfgNode, tmp_path: Path) -> None:
    before = fit_of(train(cfg))
    generator = np.random.default_rng(5)
    for path in train_labels(tmp_path):
        label = np.array(Image.open(path))
        hidden = np.isin(label, UNSEEN)
        assert hidden.any()
        label[hidden] = generator.choice([*UNSEEN, VOID], hidden.sum())
        Image.fromarray(label).save(path)
    assert equal(fit_of(train(cfg)), before)


def test_every_checkpoint_has_the_fit_of_its_own_weights(cfg: CfgNode) -> None:
    trainer = train(cfg, "SOLVER.CHECKPOINT_PERIOD", 3)
    folder = Path(cfg.OUTPUT_DIR)
    first, last = (
        torch.load(folder / name, weights_only=True)["model"]
        for name in ("model_0000002.pth", "model_final.pth")
    )
    name = f"{PREFIX}gaussians.means"
    assert first[name].abs().sum() > 0
    assert not torch.equal(first[name], last[name])
    assert torch.equal(last[name], trainer.model.state_dict()[name])


def test_a_predictor_of_the_checkpoint_asks_any_words(cfg: CfgNode, tmp_path: Path) -> None:
    trainer = train(cfg)
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    predictor = TagCLIPPredictor.from_checkpoint(path)
    image = next((tmp_path / "images" / "val").iterdir())
    found = predictor(str(image))
    trainer.model.eval()
    predictor.model = trainer.model
    again = predictor(str(image))
    assert torch.equal(found["trusty"], again["trusty"])
    predictor.set_vocabulary(WORDS, seen=["cat"])
    words = predictor(str(image))["trusty"]
    assert not torch.equal(words, found["trusty"])
    assert ((words >= 0) & (words <= 1)).all()
    predictor.set_vocabulary(WORDS, seen=WORDS)
    assert (predictor(str(image))["trusty"] > 0.99).all()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.TAGCLIP.TRUSTY.TARGET", "novel"),
        ("DATASETS.ZERO_SHOT.SETTING", "transductive"),
        ("INPUT.CROP.ENABLED", False),
    ],
)
def test_what_it_is_not_made_for_is_named(cfg: CfgNode, key: str, value: object) -> None:
    opts = [key, value, "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS", True]
    with pytest.raises(ConfigError, match=rf"^{key}: [^\n]*relative"):
        ZeroShotTrainer.build_model(changed(cfg, *opts))


def test_training_free_heads_have_no_such_map(cfg: CfgNode, maskclip_cfg: CfgNode) -> None:
    on = ("MODEL.TAGCLIP.TRUSTY.ENABLED", True, "MODEL.TAGCLIP.TRUSTY.KIND", "relative")
    import_projects(maskclip_cfg.PROJECTS)
    with pytest.raises(ConfigError, match="TRUSTY.KIND: found 'relative'"):
        ZeroShotTrainer.build_model(changed(maskclip_cfg, *on))


def test_a_tower_without_plain_patches_is_refused_when_it_is_built(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(CLIPViT, "plain")
    with pytest.raises(ConfigError, match="TRUSTY.KIND: found relative with the image tower"):
        ZeroShotTrainer.build_model(cfg)


def test_the_second_pass_of_the_tower_is_counted(cfg: CfgNode) -> None:
    size = (64, 64)
    found = ModelAnalysis(cfg).forward_macs(3, size)
    opts = [*maskclip_parts(), "MODEL.CLIP.DOUBLE_CLS_EMBED", False]
    import_projects(["training_free"])
    free = ModelAnalysis(changed(cfg, "MODEL.TAGCLIP.TRUSTY.KIND", "token", *opts))
    parts = free.forward_macs(3, size)
    # MaskCLIP projects the class token, too: 64 channels to 32.
    expected = sum(macs for name, macs in parts.items() if name.startswith("backbone")) - 64 * 32
    assert found["backbone.plain"] == expected


def test_it_is_not_exported(cfg: CfgNode) -> None:
    model = ZeroShotTrainer.build_model(cfg)
    with pytest.raises(ConfigError, match="^MODEL.TAGCLIP.TRUSTY.KIND: found relative"):
        WindowModel(model, model.vocabulary)
