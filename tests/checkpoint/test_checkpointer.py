"""Checkpoints: what they hold; complete or absent."""

from __future__ import annotations

import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from helpers.full_disk import largest_file
from helpers.tiny_checkpoint import assert_equal, build, checkpointer, save_tiny, step, trained
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tagclip import TagCLIPCheckpointer, load_config
from tagclip.checkpoint import checkpoint_metadata, read_checkpoint
from tagclip.errors import CheckpointError
from tagclip.solver import build_optimizer


@pytest.fixture
def saved(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    return save_tiny(tiny_cfg, tmp_path)


def test_round_trip_of_what_was_trained_and_nothing_else(tiny_cfg: CfgNode, saved: Path) -> None:
    cfg, model = build(tiny_cfg, seed=2)
    _, expected = build(tiny_cfg, seed=1)
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"model", "tagclip"}
    assert_equal(content["model"], trained(expected))
    name = "sem_seg_head.trusty_token"
    assert not torch.equal(trained(model)[name], content["model"][name])
    checkpointer(cfg, model, saved.parent).load(str(saved))
    assert_equal(trained(model), trained(expected))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_metadata_is_plain_and_holds_no_absolute_path(tiny_cfg: CfgNode, saved: Path) -> None:
    metadata = read_checkpoint(saved)["tagclip"]
    assert metadata["classes"] == metadata["seen_classes"] == ["cat", "grass", "sofa"]
    assert (metadata["trusty_target"], metadata["quick_gelu"]) == ("seen", True)
    assert len(metadata["clip_sha256"]) == len(metadata["vocabulary_fingerprint"]) == 64
    # Relative to OUTPUT_DIR, where a training writes its checkpoints.
    path = Path(tiny_cfg.OUTPUT_DIR) / "config.yaml"
    path.parent.mkdir()
    path.write_text(metadata["config"])
    rebuilt = load_config(path)
    assert rebuilt.OUTPUT_DIR == "./output"
    rebuilt.OUTPUT_DIR = tiny_cfg.OUTPUT_DIR
    assert yaml.safe_load(rebuilt.dump()) == yaml.safe_load(tiny_cfg.dump())

    def texts(node: Any) -> list[str]:
        if isinstance(node, (dict, list)):
            children = node.values() if isinstance(node, dict) else node
            return [text for child in children for text in texts(child)]
        return [node] if isinstance(node, str) else []

    assert not [t for t in texts(yaml.safe_load(metadata["config"])) if os.path.isabs(t)]


def test_names_on_a_hub_are_no_paths(tiny_cfg: CfgNode) -> None:
    cfg, model = build(tiny_cfg)
    cfg.MODEL.CLIP.PRETRAINED = "hf-hub:somebody/weights"
    config = yaml.safe_load(checkpoint_metadata(cfg, model)["config"])
    assert config["MODEL"]["CLIP"]["PRETRAINED"] == "hf-hub:somebody/weights"


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_weights_is_found_from_elsewhere(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    cfg, model = build(tiny_cfg)
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    cfg.MODEL.CLIP.PRETRAINED, cfg.OUTPUT_DIR = f"{prefix}weights", str(tmp_path / "run")
    config = yaml.safe_load(checkpoint_metadata(cfg, model)["config"])
    assert config["MODEL"]["CLIP"]["PRETRAINED"] == "./../weights"


def test_size_is_the_trained_tensors_and_two_moments(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    """Optimizer and trainer both hold the optimizer's state: it is stored once."""
    cfg, model = build(tiny_cfg)
    optimizer = build_optimizer(cfg, model)
    step(model, optimizer)

    class Trainer:
        def state_dict(self) -> dict[str, Any]:
            return {"iteration": 0, "optimizer": optimizer.state_dict()}

    checkpointer(cfg, model, tmp_path, optimizer=optimizer, trainer=Trainer()).save("full")
    checkpointer(cfg, model, tmp_path).save("model_only")
    tensors = trained(model).values()
    numbers, overhead = 4 * sum(t.numel() for t in tensors), 1000 * len(tensors) + 20_000
    assert numbers < (tmp_path / "model_only.pth").stat().st_size < numbers + overhead
    assert 3 * numbers < (tmp_path / "full.pth").stat().st_size < 3 * numbers + 3 * overhead
    assert sum(p.numel() for p in model.parameters()) * 4 > 3 * numbers + 3 * overhead


def test_safetensors_and_bare_state_dicts_are_read(
    tiny_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, source = build(tiny_cfg, seed=3)
    save_file(trained(source), tmp_path / "x.safetensors")
    torch.save(trained(source), tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        cfg, model = build(tiny_cfg, seed=4)
        checkpointer(cfg, model, tmp_path).load(str(tmp_path / name))
        assert_equal(trained(model), trained(source))
        assert f"{name} holds no fingerprints" in caplog.text
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=r"file is incomplete \(\d+ of \d+ bytes\)"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("path", ["", "missing.pth"])
def test_a_missing_file_is_one_line(tiny_cfg: CfgNode, tmp_path: Path, path: str) -> None:
    cfg, model = build(tiny_cfg)
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS"):
        checkpointer(cfg, model, tmp_path).load(path)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    tiny_cfg: CfgNode, saved: Path
) -> None:
    before, content = sorted(os.listdir(saved.parent)), saved.read_bytes()
    cfg, model = build(tiny_cfg, seed=2)
    for name in ("model_final", "model_next"):
        with (
            largest_file(10_000),
            pytest.raises(CheckpointError, match=r"cannot be written \(File too large\)") as caught,
        ):
            checkpointer(cfg, model, saved.parent).save(name)
        assert "\n" not in str(caught.value) and f"{name}.pth" in str(caught.value)
    assert sorted(os.listdir(saved.parent)) == before
    assert saved.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_one_line(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cfg, model = build(tiny_cfg)
    with pytest.raises(CheckpointError, match=r"x\.pth: cannot be written \("):
        checkpointer(cfg, model, tmp_path / "file").save("x")


def test_a_kill_at_any_byte_leaves_a_loadable_checkpoint(tiny_cfg: CfgNode, saved: Path) -> None:
    """20 processes overwrite the checkpoint and are killed in the middle of the file."""
    expected = read_checkpoint(saved)["model"]
    cfg, model = build(tiny_cfg, seed=2)
    writer = checkpointer(cfg, model, saved.parent)
    points = random.Random(0).sample(range(saved.stat().st_size - 1), 20)
    for point in points:
        child = os.fork()
        if child == 0:
            try:
                # The kernel kills a process that writes beyond this limit.
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (point, point))
                writer.save("model_final")
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ
        last = TagCLIPCheckpointer(model, str(saved.parent)).get_checkpoint_file()
        assert_equal(read_checkpoint(last)["model"], expected)


def test_nothing_is_written_without_a_folder_or_in_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    TagCLIPCheckpointer(nn.Linear(1, 1)).save("x")
    TagCLIPCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("x")
    assert not os.listdir(tmp_path)


def test_a_wrapped_model_loads_and_saves_the_same_names(
    tiny_cfg: CfgNode, saved: Path, tmp_path: Path
) -> None:
    cfg, model = build(tiny_cfg, seed=2)
    metadata = checkpoint_metadata(cfg, model)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", world_size=1, rank=0)
    try:
        wrapped = DistributedDataParallel(model)
        both = TagCLIPCheckpointer(wrapped, str(tmp_path), metadata=metadata)
        both.load(str(saved))
        both.save("again")
    finally:
        torch.distributed.destroy_process_group()
    expected = read_checkpoint(saved)["model"]
    assert_equal(trained(model), expected)
    assert_equal(read_checkpoint(tmp_path / "again.pth")["model"], expected)


def test_buffers_that_training_changes_are_kept(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.BatchNorm1d(3))

    source, target = network(), network()
    source(torch.rand(8, 3))
    TagCLIPCheckpointer(source, str(tmp_path)).save("x")
    TagCLIPCheckpointer(target, str(tmp_path)).load(str(tmp_path / "x.pth"))
    assert set(read_checkpoint(tmp_path / "x.pth")["model"]) == {
        f"1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert torch.equal(target[1].running_mean, source[1].running_mean)
