"""To a hub and back, with real HTTP: bit for bit, broken off, offline, of others, refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.hub_server import Hub, hub_server, run_with_hub
from helpers.tiny_checkpoint import assert_equal, save_tiny

from tagclip import TagCLIPPredictor
from tagclip.checkpoint import read_checkpoint

NAME = "somebody/tiny"
PUSH = f"""
import sys
from tagclip import TagCLIPPredictor
predictor = TagCLIPPredictor.from_checkpoint(sys.argv[1])
print(predictor.push_to_hub("{NAME}", private=True))
"""
# The path is that of the cache.
LOAD = """
import sys
from tagclip.errors import TagCLIPError
from tagclip.predictor import TagCLIPPredictor
try:
    predictor = TagCLIPPredictor.from_pretrained(sys.argv[1])
except TagCLIPError as error:
    sys.exit(f"{type(error).__name__}: {error}")
assert predictor.model.text_bank is not None
print(predictor.cfg.MODEL.WEIGHTS)
"""
FIND = """
import sys
from tagclip.checkpoint import find_weights
from tagclip.errors import TagCLIPError
try:
    print(find_weights(sys.argv[1]))
except TagCLIPError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


@pytest.fixture
def folder(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    predictor = TagCLIPPredictor.from_checkpoint(save_tiny(tiny_cfg, tmp_path / "run"))
    return predictor.save_pretrained(tmp_path / "tiny")


@pytest.fixture
def shared(hub: Hub, folder: Path) -> Hub:
    """A hub that has the model."""
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    hub.commit(NAME, {name: path.read_bytes() for name, path in files.items()})
    return hub


def one_line(result: subprocess.CompletedProcess) -> str:
    """The line with which a process failed, behind progress bars and warnings of the client."""
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_pushed_and_loaded_from_another_cache(folder: Path, hub: Hub, tmp_path: Path) -> None:
    saved = tmp_path / "run" / "model_final.pth"
    pushed = run_with_hub(PUSH, hub.address, tmp_path / "mine", saved)
    assert pushed.returncode == 0, pushed.stderr
    ((_, before), (sha, files)) = hub.commits[NAME]
    assert pushed.stdout.strip() == f"{hub.address}/{NAME}/commit/{sha}"
    assert hub.visibility[NAME] == "private" and list(before) == [".gitattributes"]
    expected = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert files.keys() - before.keys() == expected.keys()
    card = files.pop("README.md").decode()
    assert f'from_pretrained("{NAME}")' in card and f"--weights {NAME} " in card
    assert all(content == expected[n].read_bytes() for n, content in files.items() if n in expected)

    loaded = run_with_hub(LOAD, hub.address, tmp_path / "theirs", NAME)
    assert loaded.returncode == 0, loaded.stderr
    path = Path(loaded.stdout.strip())
    assert path.is_relative_to(tmp_path / "theirs") and path.parent.name == sha
    assert_equal(read_checkpoint(saved)["model"], read_checkpoint(path)["model"])


def test_offline_afterwards_and_not_before(shared: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    line = one_line(run_with_hub(LOAD, shared.address, cache, NAME, offline=True))
    assert line.startswith(f"CheckpointError: {NAME}: found no such path here, and as a model of")
    assert "is not cached and cannot be downloaded (OfflineModeIsEnabled" in line
    assert shared.requests == []
    online = run_with_hub(LOAD, shared.address, cache, NAME)
    shared.requests.clear()
    offline = run_with_hub(LOAD, shared.address, cache, NAME, offline=True)
    assert offline.returncode == 0 and offline.stdout == online.stdout and shared.requests == []
    # Without a network, and nobody who says so: the port is closed.
    closed = run_with_hub(LOAD, "http://127.0.0.1:1", cache, NAME)
    assert closed.returncode == 0 and closed.stdout == online.stdout
    line = one_line(run_with_hub(FIND, "http://127.0.0.1:1", cache, "somebody/else"))
    assert line.startswith("CheckpointError: somebody/else: found no such path here")


def test_a_newer_commit_is_taken_and_an_older_one_kept(shared: Hub, tmp_path: Path) -> None:
    first = shared.commits[NAME][0][0]
    assert run_with_hub(FIND, shared.address, tmp_path / "cache", NAME).returncode == 0
    second = shared.commit(NAME, {"README.md": b"changed"})
    for name, commit in ((NAME, second), (f"{NAME}@{first}", first), (f"hf-hub:{NAME}", second)):
        found = run_with_hub(FIND, shared.address, tmp_path / "cache", name)
        assert Path(found.stdout.strip()).parent.name == commit
    line = one_line(run_with_hub(FIND, shared.address, tmp_path / "cache", f"{NAME}@v9"))
    assert line.startswith(f"CheckpointError: {NAME}@v9: ")


def test_a_connection_that_breaks_goes_on_where_it_was(shared: Hub, tmp_path: Path) -> None:
    shared.cut = ["model.safetensors"]
    found = run_with_hub(LOAD, shared.address, tmp_path / "cache", NAME)
    assert found.returncode == 0 and shared.cut == [], found.stderr
    assert sum(r.startswith("GET") and "safetensors" in r for r in shared.requests) == 2


def test_a_download_that_fails_leaves_nothing_half(shared: Hub, tmp_path: Path) -> None:
    """The hub has lost a file; then it is there again."""
    cache, tree = tmp_path / "cache", shared.commits[NAME][0][1]
    lost = tree.pop("model.safetensors")
    line = one_line(run_with_hub(LOAD, shared.address, cache, NAME))
    assert line.startswith(f"CheckpointError: {NAME}: found no model.safetensors in this")
    assert not list(cache.glob("hub/*/snapshots/*/model.safetensors"))
    # The files that are there make no model.
    line = one_line(run_with_hub(LOAD, shared.address, cache, NAME, offline=True))
    assert "as a model of the hub its model.safetensors is not cached" in line
    tree["model.safetensors"] = lost
    assert run_with_hub(LOAD, shared.address, cache, NAME).returncode == 0


def test_models_of_others(shared: Hub, tmp_path: Path) -> None:
    shared.commit("nvidia/segformer", {"config.json": b"{}", "model.safetensors": b"x" * 99})
    wrong = json.loads(shared.commits[NAME][0][1]["tagclip.json"]) | {"files": ["../../x"]}
    shared.commit("evil/model", {"tagclip.json": json.dumps(wrong).encode(), "../../x": b"x"})
    messages = {
        "nvidia/segformer": "found no tagclip.json in this repository of the hub, expected a model",
        "nobody/nothing": "tagclip.json is not cached and cannot be downloaded (Repository",
        "evil/model": "'../../x' is no file in clip/",
    }
    for name, message in messages.items():
        assert message in one_line(run_with_hub(FIND, shared.address, tmp_path / "cache", name))
    assert not [request for request in shared.requests if "safetensors" in request]


def test_a_hub_that_refuses(folder: Path, hub: Hub, tmp_path: Path) -> None:
    assert folder.is_dir()
    hub.refuse = 401
    code = f"""
import sys
from tagclip.tools.publish_model import invoke_main
sys.argv = ["tagclip publish", "--weights", sys.argv[1], "--output", "out",
            "--push-to-hub", "{NAME}"]
invoke_main()
"""
    saved = tmp_path / "run" / "model_final.pth"
    line = one_line(run_with_hub(code, hub.address, tmp_path / "mine", saved))
    assert line.startswith(f"CheckpointError: {NAME}: cannot be sent to the hub") and "401" in line
    assert hub.commits == {} and (tmp_path / "out" / "tagclip.json").is_file()
