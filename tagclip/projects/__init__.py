"""Projects built on TagCLIP: folders of the repository's ``projects``, importable from here."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from tagclip.errors import ConfigError

__all__ = ["PROJECT_NAMES", "import_projects"]

_PROJECTS = {
    "benchmark": "Benchmark",
    "maskclip": "MaskCLIP",
    "minibench": "MiniBench",
    "webdemo": "WebDemo",
}
PROJECT_NAMES = tuple(_PROJECTS)
_ROOT = Path(__file__).resolve().parents[2] / "projects"


class _SourceFinder(importlib.abc.MetaPathFinder):
    """Find ``tagclip.projects.<name>`` in a source checkout."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        name = fullname.removeprefix(f"{__name__}.")
        if name not in _PROJECTS or name == fullname:
            return None
        init = _ROOT / _PROJECTS[name] / name / "__init__.py"
        return importlib.util.spec_from_file_location(fullname, init) if init.is_file() else None


# Behind the regular finders: an installed package has the projects inside.
sys.meta_path.append(_SourceFinder())


def import_projects(names: Iterable[str]) -> None:
    """Import projects, so that they register what they bring.

    Args:
        names: keys of the table of projects, as in ``PROJECTS`` of a config.

    Raises:
        ConfigError: there is no such project.
    """
    for name in names:
        if name not in _PROJECTS:
            raise ConfigError(
                f"PROJECTS: found {name!r}, expected some of {', '.join(sorted(_PROJECTS))}"
            )
        importlib.import_module(f"{__name__}.{name}")
