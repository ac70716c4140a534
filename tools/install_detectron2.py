#!/usr/bin/env python
"""Install detectron2 into this environment, without a compiler.

    python tools/install_detectron2.py             # from the package registry, 10 seconds
    python tools/install_detectron2.py --official  # build the official source: needs git and C++

detectron2 is not on PyPI under its own name. The sdist ``pb1-detectron2`` 0.6 holds the Python
files of the official v0.6 tag without the C++ sources; TagCLIP needs none of the compiled
operators. This tool checks its sha256, applies the compatibility edits of
``detectron2_edits.json`` (each must match an exact number of times), and installs it as a
pure-Python package. A detectron2 that is already there is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SDIST = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
OFFICIAL = "git+https://github.com/facebookresearch/detectron2.git"
EDITS = Path(__file__).with_name("detectron2_edits.json")
PROJECTS = ("PointRend/point_rend", "DeepLab/deeplab", "Panoptic-DeepLab/panoptic_deeplab")

PLACEHOLDER = '''"""Stands in for detectron2's compiled operators, which this installation does not have."""


def get_compiler_version():
    return "none (pure-Python installation)"


def get_cuda_version():
    return "none (pure-Python installation)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"detectron2._C.{name} is a compiled operator, which this pure-Python installation lacks; "
        "build the official source: python tools/install_detectron2.py --official"
    )
'''

SETUP = """from setuptools import find_packages, setup

setup(
    name="detectron2",
    version="0.6",
    packages=find_packages(),
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    install_requires=%r,
)
"""

# What v0.6 imports at run time; black, future and pydot of its own list are not used.
REQUIRES = (
    "torch torchvision numpy Pillow matplotlib pycocotools termcolor yacs tabulate cloudpickle "
    "tqdm tensorboard fvcore<0.1.6,>=0.1.5 iopath omegaconf hydra-core"
).split()


def pip(*arguments: str) -> None:
    """Run this environment's pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        sys.stderr.write(result.stdout[-2000:] + result.stderr[-2000:])
        sys.exit(
            f"pip {arguments[0]}: failed with exit code {result.returncode}, see above; "
            "check the connection to the package registry and run this again"
        )


def works() -> bool:
    """Whether detectron2 can be imported here, tried in a process of its own."""
    command = [sys.executable, "-c", "import detectron2.engine, detectron2.evaluation"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def download(folder: Path) -> Path:
    """Fetch the sdist through pip (its index, its mirror), with the pinned checksum."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST} --hash=sha256:{SHA256}\n")
    pip(
        "download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:",
        "--require-hashes", "--dest", str(folder), "--requirement", str(requirements),
    )  # fmt: skip
    (archive,) = folder.glob("*.tar.gz")
    return archive


def apply_edits(package: Path, edits: list[dict]) -> None:
    """Replace text in files below ``package``; nothing is written unless every count is right.

    Args:
        package: the folder ``detectron2``.
        edits: dicts with ``file``, ``old``, ``new`` and ``count``.

    Raises:
        SystemExit: a text occurs another number of times than expected.
    """
    texts: dict[Path, str] = {}
    for edit in edits:
        path = package / edit["file"]
        text = texts.get(path) or path.read_text(encoding="utf-8")
        found = text.count(edit["old"])
        if found != edit["count"]:
            sys.exit(
                f"{edit['file']}: found {edit['old']!r} {found} times, expected {edit['count']}; "
                "this is not detectron2 0.6: nothing was installed"
            )
        texts[path] = text.replace(edit["old"], edit["new"])
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def stage(archive: Path, folder: Path) -> Path:
    """Unpack, edit and complete the source tree; return its root."""
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    package = root / "detectron2"
    apply_edits(package, json.loads(EDITS.read_text(encoding="utf-8")))
    (package / "_C.py").write_text(PLACEHOLDER, encoding="utf-8")
    for project in PROJECTS:
        shutil.copytree(root / "projects" / project, package / "projects" / Path(project).name)
    for name in ("setup.cfg", "pyproject.toml"):
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / "tools", ignore_errors=True)
    shutil.rmtree(root / "projects")
    (root / "setup.py").write_text(SETUP % (REQUIRES,), encoding="utf-8")
    return root


def main() -> None:
    """Install unless there is nothing to do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", action="store_true", help="build the official source")
    args = parser.parse_args()
    if works():
        print("detectron2 is installed and importable: nothing to do")
        return
    if args.official:
        print(f"Building {OFFICIAL}: some minutes, needs git, GitHub and a C++ compiler")
        pip("install", "--no-build-isolation", OFFICIAL)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(f"Downloading {SDIST}")
            root = stage(download(Path(folder)), Path(folder))
            print("Installing it as a pure-Python detectron2 0.6")
            pip("install", "--quiet", "--no-deps", "--no-build-isolation", str(root))
    if not works():
        pip("uninstall", "--yes", "detectron2")
        sys.exit(
            "detectron2: cannot be imported after the installation, which was removed; check that "
            "the packages of requirements.txt are installed and run this again"
        )
    print("detectron2 is ready")


if __name__ == "__main__":
    main()
