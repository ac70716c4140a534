"""Fuzzing: whatever a file or a command line holds, only a `TagCLIPError` in one line comes out.

`make test` tries a few inputs per target, `make test-slow` TAGCLIP_FUZZ_EXAMPLES (2,000). The
inputs are the same in every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers import (
    fuzz_data,  # noqa: F401
    fuzz_weights,  # noqa: F401
)
from helpers.fuzzing import TARGETS, Space, Target, changed_bytes, json_values, target, tried
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tagclip import load_config
from tagclip.config.loading import build_config

FEW = 30
MANY = int(os.environ.get("TAGCLIP_FUZZ_EXAMPLES", "2000"))


YAML_PARTS = st.sampled_from(
    ["MODEL", "SOLVER", "SEED", "_BASE_", "WEIGHTS", "TEMPLATES", ": ", ":\n  ", "\n", "- ", "[",
     "]", "{", "}", ",", "&a ", "*a", "<<: ", "!!python/object/apply:os.system ", "!!int ",
     "!!timestamp ", "!!binary ", "|\n", "'", '"', "#", "%", "---\n", "0x", "1e9", "~", "null",
     "2001-99-99", "\t", "\0", "../", "~nobody/", "x" * 300]
)  # fmt: skip


@target
def config_text(space: Space) -> Target:
    """Random pieces of yaml, and changed configs."""
    base = (Path(__file__).parents[2] / "configs" / "Base-ZeroShot.yaml").read_bytes()
    pieces = st.lists(st.one_of(YAML_PARTS, st.text(max_size=3)), max_size=25).map("".join)
    inputs = st.one_of(pieces, changed_bytes(base))
    return inputs, lambda text: tried(lambda: load_config(space.write("config.yaml", text)))


@target
def config_values(space: Space) -> Target:
    """Known and unknown keys with any value, in a yaml file and on the command line."""
    keys = sorted(key_paths(load_config()))
    known = st.one_of(st.sampled_from(keys), st.text(max_size=5))
    pairs = st.lists(st.tuples(known, json_values()), min_size=1, max_size=4)

    def call(drawn: tuple[list[tuple[str, Any]], int]) -> None:
        pairs, way = drawn
        tree: dict[str, Any] = {}
        for key, value in pairs:
            *sections, last = key.split(".")
            node = tree
            for section in sections:
                child = node.get(section)
                node[section] = node = child if isinstance(child, dict) else {}
            node[last] = value
        words = [word for pair in pairs for word in pair]
        ways = ([("config", tree)], ()), ((), words), ((), list(map(str, words)))
        tried(lambda: build_config(*ways[way]))

    return st.tuples(pairs, st.integers(0, 2)), call


def key_paths(cfg: CfgNode, prefix: str = "") -> list[str]:
    found = []
    for key, value in cfg.items():
        inner = key_paths(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else []
        found += inner or [f"{prefix}{key}"]
    return found


def fuzz(make: Callable[[Space], Target], space: Space, cases: int) -> int:
    """Try so many inputs; return how many were tried."""
    inputs, call = make(space)
    count = 0

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def try_one(value: Any) -> None:
        nonlocal count
        count += 1
        call(value)

    try_one()
    return count


@pytest.fixture
def space(tmp_path: Path, tiny_cfg: CfgNode) -> Space:
    return Space(tmp_path, tiny_cfg)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_inputs(name: str, space: Space) -> None:
    assert fuzz(TARGETS[name], space, FEW) >= FEW


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs(name: str, space: Space) -> None:
    count = fuzz(TARGETS[name], space, MANY)
    print(f"{name}: {count} inputs")
    assert count >= MANY
