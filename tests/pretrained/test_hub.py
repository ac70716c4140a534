"""To a hub and back, with real HTTP: bit for bit, broken off, offline, of others, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.hub_server import Hub, hub_server, run_with_hub, use_hub
from helpers.tiny_checkpoint import assert_equal, save_tiny
from huggingface_hub import constants, file_download

from tagclip import TagCLIPPredictor
from tagclip.checkpoint import find_weights, read_checkpoint
from tagclip.errors import CheckpointError

NAME = "somebody/tiny"
PUSH = f"""
import sys
from tagclip import TagCLIPPredictor
predictor = TagCLIPPredictor.from_checkpoint(sys.argv[1])
print(predictor.push_to_hub("{NAME}", private=True))
"""
LOAD = f"""
from tagclip import TagCLIPPredictor
print(TagCLIPPredictor.from_pretrained("{NAME}").cfg.MODEL.WEIGHTS)
"""
# Where nobody listens.
CLOSED = "http://127.0.0.1:1"


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


def failure(name: str, load: Callable[[str], object] = find_weights) -> str:
    """The line of an error."""
    with pytest.raises(CheckpointError) as error:
        load(name)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_pushed_and_loaded_from_another_cache(folder: Path, hub: Hub, tmp_path: Path) -> None:
    saved = tmp_path / "run" / "model_final.pth"
    printed = run_with_hub(PUSH, hub.address, tmp_path / "mine", saved)
    ((_, before), (sha, files)) = hub.commits[NAME]
    assert printed == f"{hub.address}/{NAME}/commit/{sha}"
    assert hub.visibility[NAME] == "private" and list(before) == [".gitattributes"]
    expected = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert files.keys() - before.keys() == expected.keys()
    card = files.pop("README.md").decode()
    assert f'from_pretrained("{NAME}")' in card and f"--weights {NAME} " in card
    assert all(content == expected[n].read_bytes() for n, content in files.items() if n in expected)

    path = Path(run_with_hub(LOAD, hub.address, tmp_path / "theirs"))
    assert path.is_relative_to(tmp_path / "theirs") and path.parent.name == sha
    assert_equal(read_checkpoint(saved)["model"], read_checkpoint(path)["model"])


def test_offline_afterwards_and_not_before(
    shared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    use_hub(monkeypatch, shared.address, cache, offline=True)
    line = failure(NAME)
    assert line.startswith(f"{NAME}: found no such path here, and as a model of the hub its ")
    assert "is not cached and cannot be downloaded (OfflineModeIsEnabled" in line
    assert shared.requests == []
    use_hub(monkeypatch, shared.address, cache)
    online = find_weights(NAME)
    shared.requests.clear()
    use_hub(monkeypatch, shared.address, cache, offline=True)
    assert find_weights(NAME) == online and shared.requests == []
    assert str(online) == TagCLIPPredictor.from_pretrained(NAME).cfg.MODEL.WEIGHTS
    # Without a network, and nobody who says so.
    use_hub(monkeypatch, CLOSED, cache)
    assert find_weights(NAME) == online == find_weights(NAME, local_files_only=True)
    assert failure("somebody/else").startswith("somebody/else: found no such path here, and as a")


def test_a_newer_commit_is_taken_and_an_older_one_kept(
    shared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, shared.address, tmp_path / "cache")
    first = shared.commits[NAME][0][0]
    assert find_weights(NAME).parent.name == first
    second = shared.commit(NAME, {"README.md": b"changed"})
    for name, commit in ((NAME, second), (f"{NAME}@{first}", first), (f"hf-hub:{NAME}", second)):
        assert find_weights(name).parent.name == commit
    assert find_weights(NAME, revision=first).parent.name == first
    assert "RevisionNotFound" in failure(f"{NAME}@v9")


def test_a_connection_that_breaks_goes_on_where_it_was(
    shared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, shared.address, tmp_path / "cache")
    # What has arrived of a chunk is lost.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    shared.cut = ["model.safetensors"]
    assert read_checkpoint(NAME)["model"] and shared.cut == []
    assert sum(r.startswith("GET") and "safetensors" in r for r in shared.requests) == 2
    assert max(shared.ranges) > 0


def test_a_download_that_fails_leaves_nothing_half(
    shared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub has lost a file, then it breaks off whenever it is asked, then it works."""
    cache, tree = tmp_path / "cache", shared.commits[NAME][0][1]
    use_hub(monkeypatch, shared.address, cache)
    lost = tree.pop("model.safetensors")
    assert failure(NAME).startswith(f"{NAME}: found no model.safetensors in this repository")
    assert not list(cache.glob("*/snapshots/*/model.safetensors"))
    # The files that are there make no model.
    use_hub(monkeypatch, shared.address, cache, offline=True)
    assert "as a model of the hub its model.safetensors is not cached" in failure(NAME)
    use_hub(monkeypatch, shared.address, cache)
    tree["model.safetensors"] = lost
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    shared.cut = ["model.safetensors"] * 6
    assert "cannot be downloaded (RemoteProtocolError" in failure(NAME) and shared.cut == []
    assert not list(cache.glob("*/snapshots/*/model.safetensors"))
    assert read_checkpoint(NAME)["model"]


def test_another_clip_from_the_hub(
    shared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, shared.address, tmp_path / "cache")
    tree = json.loads(shared.commits[NAME][0][1]["tagclip.json"])
    tree["clip"]["sha256"] = "0" * 64
    shared.commit(NAME, {"tagclip.json": json.dumps(tree).encode()})
    line = failure(NAME, TagCLIPPredictor.from_pretrained)
    assert "does not fit the model: clip_sha256: found 000" in line


def test_models_of_others(shared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, shared.address, tmp_path / "cache")
    shared.commit("nvidia/segformer", {"config.json": b"{}", "model.safetensors": b"x" * 99})
    wrong = json.loads(shared.commits[NAME][0][1]["tagclip.json"]) | {"files": ["../../x"]}
    shared.commit("evil/model", {"tagclip.json": json.dumps(wrong).encode(), "../../x": b"x"})
    messages = {
        "nvidia/segformer": "found no tagclip.json in this repository of the hub, expected a model",
        "nobody/nothing": "tagclip.json is not cached and cannot be downloaded (Repository",
        "evil/model": "'../../x' is no file in clip/",
        "hf-hub:../../x": "is no name of a model on the hub",
    }
    for name, message in messages.items():
        assert message in failure(name)
    assert not [request for request in shared.requests if "safetensors" in request]


def test_a_hub_that_refuses(
    folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TagCLIPPredictor.from_pretrained(folder)
    use_hub(monkeypatch, hub.address, tmp_path / "cache")
    hub.refuse = 401
    line = failure(NAME, predictor.push_to_hub)
    assert line.startswith(f"{NAME}: cannot be sent to the hub") and "401" in line
    assert hub.commits == {}
    # What cannot be written is not begun: no empty repository is left.
    hub.refuse, hub.requests = 0, []
    other = tmp_path / "metrics.json"
    other.write_text("{}")
    with pytest.raises(CheckpointError, match="holds no results"):
        predictor.push_to_hub(NAME, results=[other])
    assert hub.requests == []
