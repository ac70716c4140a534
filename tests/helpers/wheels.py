"""A wheel of this checkout, built in a copy of what setup.py needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from helpers.paths import REPOSITORY

# Everything else of a checkout may be absent.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY.md")
FOLDERS = ("tagclip", "tools", "configs", "projects")


def pip(*words: str | Path) -> None:
    """Run this environment's pip."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]


def copy_sources(folder: Path) -> Path:
    """Fill a folder: a build leaves files in its source, and takes what an earlier one left."""
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, folder)
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignore)
    (folder / "datasets").mkdir()
    for path in (REPOSITORY / "datasets" / "README.md", *REPOSITORY.glob("datasets/*.py")):
        shutil.copy(path, folder / "datasets")
    return folder


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a source into a folder; return its path."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel
