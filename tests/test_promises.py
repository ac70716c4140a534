"""What docs/promises.md promises and no other test shows; and that every promise names its test."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP, random_clip
from helpers.tiny_checkpoint import save_tiny
from helpers.tiny_run import (
    changed,
    equal,
    exit_of,
    run_arguments,
)
from open_clip import pretrained
from safetensors.torch import save_file

from tagclip import TagCLIPPredictor
from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.meta_arch import TagCLIP
from tagclip.utils.cli import run_tool

# 6: window batch, class chunk


def predictions(cfg: CfgNode, weights: Path) -> list[dict[str, Any]]:
    """The same image with other settings of memory."""
    image = np.random.default_rng(0).integers(0, 256, (150, 190, 3), np.uint8)
    names = [f"thing {i}" for i in range(60)]
    results = []
    for batch, workspace in ((4, 256), (1, 256), (7, 1)):
        opts = ("TEST.WINDOW_BATCH", batch, "TEST.WORKSPACE_MIB", workspace)
        keys = [f"MODEL.TAGCLIP.{x}" if isinstance(x, str) else x for x in opts]
        predictor = TagCLIPPredictor(changed(cfg, *keys, "MODEL.WEIGHTS", str(weights)))
        predictor.set_vocabulary(names, seen=names[::2])
        results.append(predictor(image, top_k=3))
    assert len(results[0]["sem_seg_labels"].unique()) > 3
    return results


def test_no_bit_of_a_prediction_depends_on_memory_settings(
    tiny_cfg: CfgNode, tmp_path: Path
) -> None:
    first, *others = predictions(tiny_cfg, save_tiny(tiny_cfg, tmp_path))
    for name in ("sem_seg_labels", "sem_seg_scores", "trusty", "top_labels", "top_scores"):
        assert all(torch.equal(other[name], first[name]) for other in others), name


def test_where_the_settings_act_they_change_rounding_only(
    tiny_cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU takes sizes of its own; here it takes those of a GPU."""
    chunks = set()

    def chunk(self: ScoreFusion, size: tuple[int, int]) -> int:
        chunks.add(max(1, self.workspace_mib // 20))
        return max(1, self.workspace_mib // 20)

    path = save_tiny(tiny_cfg, tmp_path)
    first = predictions(tiny_cfg, path)[0]
    monkeypatch.setattr(TagCLIP, "_windows_per_batch", lambda m: m.inference_settings.window_batch)
    monkeypatch.setattr(ScoreFusion, "classes_per_chunk", chunk)
    for other in predictions(tiny_cfg, path):
        for name in ("sem_seg_scores", "trusty", "top_scores"):
            torch.testing.assert_close(other[name], first[name], rtol=0, atol=1e-3)
        assert (other["sem_seg_labels"] != first["sem_seg_labels"]).float().mean() < 0.01
    assert chunks == {12, 1}


# 9: offline


@pytest.fixture
def tag(tiny_clip_json: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A tag of the tiny CLIP on a hub that nothing calls offline; its name and model."""
    entry = {"hf_hub": "nobody/tiny/", "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED, tiny_clip_json, {"words": entry})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return {"MODEL.CLIP.NAME": tiny_clip_json, "MODEL.CLIP.PRETRAINED": "words"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whom the process tried to reach; every socket refuses."""
    addresses: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> None:
        addresses.append([a for a in arguments if not isinstance(a, socket.socket)])
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    return addresses


def cache_weights(folder: Path) -> None:
    """Lay the tiny CLIP where huggingface_hub keeps what it has downloaded."""
    repository = folder / "models--nobody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    path = repository / "snapshots" / "0123" / "open_clip_model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(dict(random_clip(TINY_CLIP).state_dict()), path)


def test_without_a_network_everything_runs_from_cached_weights(
    train_net: ModuleType,
    config: Path,
    tmp_path: Path,
    tag: dict[str, str],
    asked: list[Any],
) -> None:
    cache, output = tmp_path / "cache", tmp_path / "run"
    options = {**tag, "MODEL.CLIP.CACHE_DIR": cache, "OUTPUT_DIR": output}
    opts = [value for pair in options.items() for value in pair]
    line = exit_of(run_tool, train_net.main, run_arguments(config, *opts))
    assert "/words: not cached, and https://" in line and asked
    assert not output.exists()

    cache_weights(cache)
    asked.clear()
    results = train_net.main(run_arguments(config, *opts))
    found = ("MODEL.WEIGHTS", output / "model_final.pth")
    again = train_net.main(run_arguments(config, *opts, *found, eval_only=True))
    np.testing.assert_equal(again["sem_seg"], results["sem_seg"])
    predictor = TagCLIPPredictor.from_checkpoint(output / "model_final.pth")
    predictor.set_vocabulary(["a word that no cache holds", "cat"])
    labels = predictor(np.zeros((20, 30, 3), np.uint8))["sem_seg_labels"]
    assert labels.shape == (20, 30)
    assert asked == []


# 10: one command line


def test_one_command_line_on_cpu_and_gpu(
    train_net: ModuleType, config: Path, tmp_path: Path
) -> None:
    found = {}
    for device in ("cuda", "cpu"):
        output = tmp_path / device
        arguments = run_arguments(config, "OUTPUT_DIR", output, "MODEL.DEVICE", device)
        train_net.start(arguments)
        found[device] = torch.load(output / "model_final.pth")["model"]
        assert (output / "results.csv").is_file()
    log = (tmp_path / "cuda" / "log.txt").read_text()
    if torch.cuda.is_available():
        assert "Device: cuda" in log
    else:
        assert "Device: cpu (found no GPU)" in log
        assert equal(found["cuda"], found["cpu"])


def test_no_code_names_a_gpu(repository: Path) -> None:
    for folder in ("tagclip", "tools", "projects"):
        for path in (repository / folder).rglob("*.py"):
            assert not re.search(r"""\.cuda\(|["']cuda:\d""", path.read_text()), path


# docs/promises.md and docs/behaviours.md


def defined_tests(path: Path) -> set[str]:
    """Names of a file's test functions."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def named_tests(row: str) -> list[tuple[str, str]]:
    """(file, function) of every ``tests/....py::name`` of a row; ``::name`` repeats the file."""
    found, file = [], ""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row):
        file = path or file
        found.append((file, name))
    return found


def test_every_promise_names_tests_that_exist(repository: Path) -> None:
    section = (repository / "docs" / "promises.md").read_text().split("\n## ")[0]
    assert section.startswith("# Ten promises\n")
    rows = re.findall(r"^\| (\d+) \|.*$", section, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 11)]
    for row in re.findall(r"^\| \d+ \|.*$", section, re.MULTILINE):
        check_named_tests(repository, row)


def check_named_tests(repository: Path, row: str) -> None:
    tests = named_tests(row)
    assert tests and len(tests) == row.count("::"), row
    for file, name in tests:
        assert name.startswith("test_"), row
        assert name in defined_tests(repository / file), f"{file}::{name}"


def test_every_behaviour_names_its_test_and_every_finding_has_a_row(repository: Path) -> None:
    text = (repository / "docs" / "behaviours.md").read_text()
    title, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = title.count("|")
    for row in rows:
        assert row.count("|") == columns, row
        check_named_tests(repository, row)
    counts = len(rows), sum("findings/" in row for row in rows)
    figures = "{}, each with the test that guards against it, {} with a script".format(*counts)
    assert figures in (repository / "docs" / "promises.md").read_text()
    shown = re.findall(r"\]\(\.\./findings/(\w+\.sh)\)", text)
    files = {path.name for path in (repository / "findings").iterdir()} - {"environment.sh"}
    assert sorted(shown) == sorted(files)
    for name in files:
        script = repository / "findings" / name
        assert os.access(script, os.X_OK), name
        subprocess.run(["bash", "-n", str(script)], check=True)
