"""Projects built on TagCLIP: folders of the repository's ``projects``, importable from here."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

from tagclip.errors import ConfigError

__all__ = ["PROJECT_NAMES", "ROOT", "current_path", "import_projects", "same_project_file"]

# Packages that lie elsewhere in the repository, as in setup.py: projects, and scripts.
_FOLDERS = {
    "tagclip.projects.benchmark": "projects/Benchmark/benchmark",
    "tagclip.projects.minibench": "projects/MiniBench/minibench",
    "tagclip.projects.training_free": "projects/TrainingFree/training_free",
    "tagclip.projects.webdemo": "projects/WebDemo/webdemo",
    "tagclip.tools": "tools",
    "tagclip.tools.minibench": "projects/MiniBench",
    "tagclip.tools.prepare": "datasets",
    "tagclip.tools.webdemo": "projects/WebDemo",
}
# Earlier names of projects and of their folders.
_RENAMED = {"maskclip": "training_free"}
_MOVED = {"MaskCLIP": "TrainingFree"}
_PREFIX = f"{__name__}."
PROJECT_NAMES = tuple(n.removeprefix(_PREFIX) for n in _FOLDERS if n.startswith(_PREFIX))
# pathlib would take longer than all the rest of `import tagclip`.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_INSTALLED = os.path.join(_PACKAGE, "model_zoo")
ROOT = _INSTALLED if os.path.isdir(f"{_INSTALLED}/configs") else os.path.dirname(_PACKAGE)
"""Folder with ``configs``, ``projects/*/configs`` and ``projects/MiniBench/assets``: the checkout,
or where setup.py puts them in an installed package."""


class _SourceFinder:
    """Find the packages of `_FOLDERS` in a source checkout."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _FOLDERS:
            return None
        folder = os.path.join(ROOT, _FOLDERS[fullname])
        init = os.path.join(folder, "__init__.py")
        if os.path.isfile(init):
            return importlib.util.spec_from_file_location(fullname, init)
        spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations.append(folder)
        return spec


# Behind the regular finders: an installed package has these packages inside.
sys.meta_path.append(_SourceFinder())


def current_path(path: str) -> str:
    """Return a path, or a name of the model zoo, with the present names of projects' folders.

    Args:
        path: such as ``projects/MaskCLIP/configs/NAME.yaml`` or ``maskclip/NAME.yaml``.
    """
    for old, new in _MOVED.items():
        path = path.replace(f"projects{os.sep}{old}{os.sep}", f"projects{os.sep}{new}{os.sep}")
        if path.startswith(f"{old.lower()}/"):
            path = new.lower() + path[len(old) :]
    return path


def same_project_file(path: str) -> str:
    """Path of the file of our ``projects`` that a path of another checkout or package means.

    Args:
        path: such as ``/elsewhere/projects/MiniBench/assets/mini_clip.safetensors``.

    Returns:
        The path here; "" if the path leads through no ``projects``, or there is no such file.
    """
    parts = path.split(os.sep)
    if "projects" not in parts:
        return ""
    last = len(parts) - 1 - parts[::-1].index("projects")
    here = os.path.join(ROOT, current_path(os.path.join(*parts[last:])))
    return here if os.path.isfile(here) else ""


def import_projects(names: Iterable[str]) -> None:
    """Import projects, so that they register what they bring.

    Args:
        names: keys of the table of projects, or earlier ones, as in ``PROJECTS`` of a config.

    Raises:
        ConfigError: there is no such project.
    """
    for name in (_RENAMED.get(name, name) for name in names):
        if name not in PROJECT_NAMES:
            raise ConfigError(
                f"PROJECTS: found {name!r}, expected some of {', '.join(PROJECT_NAMES)}"
            )
        importlib.import_module(_PREFIX + name)
