"""A checkpoint of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from helpers.tiny_checkpoint import save_tiny


@pytest.fixture
def weights(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """Weights that seed 1 has drawn."""
    return save_tiny(tiny_cfg, tmp_path / "model")
