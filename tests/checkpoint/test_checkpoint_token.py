"""The one tensor that a config may leave out of a checkpoint: the trusty token."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import assert_equal, build, checkpointer, save_tiny, trained

from tagclip.checkpoint import read_checkpoint
from tagclip.engine import run_info
from tagclip.errors import CheckpointError

TOKEN = "sem_seg_head.trusty_token"
OFF = {"MODEL__TAGCLIP__TRUSTY__ENABLED": False}


@pytest.fixture
def saved(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path)


def test_a_model_without_token_drops_it_and_says_so(
    tiny_cfg: CfgNode, saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg, model = build(tiny_cfg, seed=2, **OFF)
    checkpointer(cfg, model, saved.parent).load(str(saved))
    expected = {n: t for n, t in read_checkpoint(saved)["model"].items() if n != TOKEN}
    assert_equal(trained(model), expected)
    assert f"{saved}: its trusty token is dropped" in caplog.text
    cfg.MODEL.WEIGHTS = str(saved)
    assert run_info(cfg)["weights_dropped"] == [TOKEN]


def test_what_the_token_was_trained_on_does_not_matter_without_it(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    tiny_cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = True
    cfg, model = build(tiny_cfg, MODEL__TAGCLIP__TRUSTY__TARGET="novel")
    checkpointer(cfg, model, tmp_path).save("novel")
    cfg, model = build(tiny_cfg, **OFF)
    checkpointer(cfg, model, tmp_path).load(str(tmp_path / "novel.pth"))


def test_nothing_else_is_dropped(tiny_cfg: CfgNode, saved: Path) -> None:
    cfg, model = build(tiny_cfg, **OFF)
    checkpointer(cfg, model, saved.parent).save("without")
    without = saved.with_name("without.pth")
    cfg.MODEL.WEIGHTS = str(without)
    assert run_info(cfg)["weights_dropped"] == []
    # A token that a model has and a checkpoint lacks is missing.
    cfg, model = build(tiny_cfg)
    with pytest.raises(CheckpointError, match=rf"{TOKEN}: found nothing, expected 1x32"):
        checkpointer(cfg, model, saved.parent).load(str(without))
    cfg.MODEL.WEIGHTS = str(saved)
    assert run_info(cfg)["weights_dropped"] == []
