"""Shared set-up: one thread, no network, a tiny random CLIP, repositories' folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from detectron2.config import CfgNode
from helpers.clip_files import TINY_CLIP
from helpers.paths import REPOSITORY
from helpers.tiny_run import (
    changed,
    load_tool,
    maskclip_parts,
    own_loggers,
    tiny_config,
    tiny_tree,
    write_run_config,
)

torch.set_num_threads(1)
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("tagclip", deadline=None)
hypothesis.settings.load_profile("tagclip")
# In environments of their own: tests/interop/run.sh.
collect_ignore = ["interop"]


@pytest.fixture(scope="session")
def tiny_clip_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of an open_clip model json that builds in milliseconds (use PRETRAINED "")."""
    path = tmp_path_factory.mktemp("clip") / "tiny-clip.json"
    path.write_text(json.dumps(TINY_CLIP))
    return str(path)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root folder of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_vocabulary_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a vocabulary of five classes, of which `dog` and `sky` are unseen."""
    path = tmp_path_factory.mktemp("vocabulary") / "tiny5.json"
    path.write_text(json.dumps(tiny_tree()))
    return str(path)


@pytest.fixture
def tiny_cfg(tiny_clip_json: str, tiny_vocabulary_json: str, tmp_path: Path) -> CfgNode:
    """Config of a random tiny model on the datasets `tiny_train` and `tiny_val`."""
    return tiny_config(tmp_path, tiny_clip_json, tiny_vocabulary_json)


@pytest.fixture
def maskclip_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """MaskCLIP of projects/TrainingFree on the tiny CLIP and the datasets of `tiny_cfg`."""
    return changed(tiny_cfg, *maskclip_parts())


@pytest.fixture(scope="session")
def train_net(repository: Path) -> ModuleType:
    """tools/train_net.py as a module."""
    return load_tool(repository / "tools" / "train_net.py")


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Leave the loggers as they were: a run adds handlers, which would outlive their streams."""
    with own_loggers():
        yield


@pytest.fixture
def config(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """Config file of four steps of two images, on a dataset that exists."""
    return write_run_config(tiny_cfg, tmp_path)
