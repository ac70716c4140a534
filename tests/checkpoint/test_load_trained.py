"""A model with its trained weights from a config, and where a folder's last checkpoint is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import assert_equal, build, checkpointer, save_tiny, trained

from tagclip.checkpoint import last_checkpoint, load_trained, read_checkpoint
from tagclip.errors import CheckpointError
from tagclip.solver import build_optimizer


@pytest.fixture
def saved(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path)


def test_weights_of_the_config_or_of_the_argument(tiny_cfg: CfgNode, saved: Path) -> None:
    weights = read_checkpoint(saved)["model"]
    tiny_cfg.MODEL.WEIGHTS = str(saved)
    for model in (load_trained(tiny_cfg), load_trained(build(tiny_cfg, seed=3)[0], str(saved))):
        assert not model.training
        found = trained(model)
        assert_equal(found, {name: weights[name] for name in found})


def test_a_model_that_is_built_already_is_taken(tiny_cfg: CfgNode, saved: Path) -> None:
    cfg, model = build(tiny_cfg, seed=3)
    before = trained(model)
    assert load_trained(cfg, str(saved), model=model) is model
    assert any((before[name] != tensor).any() for name, tensor in trained(model).items())


def test_what_does_not_fit_is_left_out_for_evaluations_that_allow_it(
    tiny_cfg: CfgNode, saved: Path
) -> None:
    cfg, model = build(tiny_cfg, MODEL__TAGCLIP__LAYERS="n", TEST__ALLOW_PARTIAL_WEIGHTS=True)
    load_trained(cfg, str(saved), model=model)
    for change in ({"strict": True}, {"optimizer": build_optimizer(cfg, model)}):
        with pytest.raises(CheckpointError, match="does not fit the model"):
            load_trained(cfg, str(saved), model=model, **change)


def test_only_a_training_may_start_from_clip(tiny_cfg: CfgNode) -> None:
    cfg, model = build(tiny_cfg)
    with pytest.raises(CheckpointError, match="expected a checkpoint to evaluate"):
        load_trained(cfg, "", model=model)
    load_trained(cfg, "", model=model, optimizer=build_optimizer(cfg, model))


def test_the_last_checkpoint_of_a_folder(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") == last_checkpoint(tmp_path) == ""
    cfg, model = build(tiny_cfg)
    training = checkpointer(
        cfg, model, tmp_path, optimizer=build_optimizer(cfg, model), trainer=_State()
    )
    for name in ("model_0", "model_1"):
        training.save(name, iteration=0)
    assert last_checkpoint(tmp_path) == training.get_checkpoint_file()
    assert last_checkpoint(tmp_path) == str(tmp_path / "model_1.pth")
    (tmp_path / "last_checkpoint").write_text("model_0.pth\n")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "model_0.pth")
    (tmp_path / "last_checkpoint").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "model_1.pth")


def test_a_folder_of_weights_alone_has_nothing_to_continue_from(saved: Path) -> None:
    saved.with_name("last_checkpoint").unlink()
    assert last_checkpoint(saved.parent) == ""


class _State:
    def state_dict(self) -> dict[str, int]:
        return {}
