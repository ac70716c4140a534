"""Imports that wait: a stand-in is there for the block alone, and leads to the real module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tagclip.utils.deferred import deferred

LATE = """
LOADED = True
WORD = "late"

def double(value, *, add=0):
    return 2 * value + add

class Pair(tuple):
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose parts take functions of its module ``late``."""
    folder = tmp_path / "slow_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "late.py").write_text(LATE)
    (folder / "caller.py").write_text("from slow_package.late import double, Pair\n")
    (folder / "reader.py").write_text("from slow_package.late import WORD, double\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "slow_package"
    for name in [name for name in sys.modules if name.startswith("slow_package")]:
        del sys.modules[name]


def is_loaded(module: str) -> bool:
    return hasattr(sys.modules.get(module), "LOADED")


def test_the_module_is_loaded_by_the_first_call(package: str) -> None:
    late = f"{package}.late"
    with deferred(late, "double", "Pair"):
        caller = importlib.import_module(f"{package}.caller")
    assert late not in sys.modules
    assert caller.double(4, add=1) == 9
    assert is_loaded(late)
    assert caller.Pair([1, 2]) == (1, 2) and type(caller.Pair([1])).__module__ == late


def test_another_name_loads_it_at_once(package: str) -> None:
    late = f"{package}.late"
    with deferred(late, "double"):
        reader = importlib.import_module(f"{package}.reader")
        assert is_loaded(late)
    assert reader.WORD == "late" and reader.double(3) == 6
    assert is_loaded(late)


def test_a_name_that_it_lacks_is_an_import_error(package: str) -> None:
    with deferred(f"{package}.late", "double"), pytest.raises(ImportError, match="absent"):
        exec(f"from {package}.late import absent", {})


def test_afterwards_it_is_imported_as_ever(package: str) -> None:
    late = f"{package}.late"
    with deferred(late, "double"):
        pass
    assert importlib.import_module(late).WORD == "late"


def test_an_error_inside_leaves_no_stand_in(package: str) -> None:
    late = f"{package}.late"
    with pytest.raises(KeyError), deferred(late, "double"):
        raise KeyError
    assert late not in sys.modules


def test_a_loaded_module_stays(package: str) -> None:
    late = f"{package}.late"
    before: ModuleType = importlib.import_module(late)
    with deferred(late, "double"):
        caller = importlib.import_module(f"{package}.caller")
    assert sys.modules[late] is before and caller.double is before.double
