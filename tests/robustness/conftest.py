"""The bench of the tests in this folder, and a root for the benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bench import Bench
from helpers.miniature_trees import benchmarks_at


@pytest.fixture
def bench(request: pytest.FixtureRequest) -> Bench:
    """An empty folder and the tiny model, on which the tools are called."""
    return Bench.of(request)


@pytest.fixture
def benchmarks(tmp_path: Path) -> Iterator[None]:
    """The benchmarks are registered below ``data`` in the test's folder."""
    with benchmarks_at(tmp_path / "data"):
        yield
