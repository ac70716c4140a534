#!/usr/bin/env python
"""Install what no requirement brings: detectron2, without a compiler, and cv2.

tagclip setup-detectron2              # from the package registry, 10 seconds
tagclip setup-detectron2 --official   # build the official source, some minutes:
                                      # needs git, GitHub and a C++ compiler

The same in a checkout: python tools/install_detectron2.py. What is already
there is kept.

detectron2 is not on PyPI under its own name. The sdist ``pb1-detectron2`` 0.6
holds the Python files of the official v0.6 tag without the C++ sources; TagCLIP
needs none of the compiled operators. This tool checks its sha256, applies the
compatibility edits of ``detectron2_edits.json`` (each must match an exact
number of times), and installs it as a pure-Python package. Where there is no
cv2, it first installs opencv-python-headless.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

SDIST = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
OFFICIAL = "git+https://github.com/facebookresearch/detectron2.git"
EDITS = Path(__file__).with_name("detectron2_edits.json")
OPENCV = "opencv-python-headless"
COMMAND = "tagclip setup-detectron2"
# What pip needs to build detectron2, and the command that brings it.
PREREQUISITES = {
    "torch": "python -m pip install torch torchvision",
    "setuptools": "python -m pip install setuptools",
}
PROJECTS = ("PointRend/point_rend", "DeepLab/deeplab", "Panoptic-DeepLab/panoptic_deeplab")

PLACEHOLDER = '''"""Stands in for detectron2's compiled operators, which are not installed."""


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
        "build the official source: tagclip setup-detectron2 --official"
    )
'''

# install_requires: what v0.6 imports; black, future and pydot of its own list are not needed.
SETUP = """from setuptools import find_packages, setup

setup(
    name="detectron2",
    version="0.6",
    description="detectron2 0.6 without compiled operators",
    url="https://github.com/facebookresearch/detectron2",
    license="Apache-2.0",
    packages=find_packages(include=["detectron2", "detectron2.*"]),
    package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]},
    install_requires=\"\"\"
        torch torchvision numpy Pillow matplotlib pycocotools termcolor yacs tabulate cloudpickle
        tqdm tensorboard fvcore>=0.1.5,<0.1.6 iopath omegaconf hydra-core
    \"\"\".split(),
)
"""


def run_pip(*arguments: str, show: bool = False) -> None:
    """Run this environment's pip.

    Args:
        arguments: of pip.
        show: let pip write to the terminal, instead of only when it fails.

    Raises:
        SystemExit: pip failed.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, check=False, capture_output=not show, text=True)
    if result.returncode:
        if not show:
            sys.stderr.write(result.stdout[-2000:] + result.stderr[-4000:])
        sys.exit(
            f"pip {arguments[0]}: failed with exit code {result.returncode}, see above; "
            "check the connection to the package registry, then run this again"
        )


def import_error(
    modules: str = "detectron2.engine, detectron2.evaluation, detectron2.model_zoo",
) -> str:
    """Last line of the error that importing modules gives in a fresh process; "" if none."""
    command = [sys.executable, "-P", "-c", f"import {modules}"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if not result.returncode:
        return ""
    return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]


def location(package: str = "detectron2") -> Path | None:
    """Folder of a package that Python finds, whole or half; None if there is none."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def is_ours(folder: Path) -> bool:
    """Whether this tool installed it: the official one has no ``_C.py``."""
    return (folder / "_C.py").is_file()


def is_recorded() -> bool:
    """Whether pip finished installing detectron2 (it writes these files last)."""
    try:
        distribution = importlib.metadata.distribution("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(distribution.read_text(name) for name in ("INSTALLER", "RECORD"))


def remove() -> None:
    """Take away what this tool installed, whole or half."""
    folder = location()
    if folder is not None and is_ours(folder):
        shutil.rmtree(folder)
        for info in folder.parent.glob("detectron2-0.6.dist-info"):
            shutil.rmtree(info)


def check_pip() -> None:
    """Check that this environment has pip.

    Raises:
        SystemExit: it has none.
    """
    if importlib.util.find_spec("pip") is None:
        sys.exit(
            f"{sys.executable}: pip is not installed, but brings detectron2 and cv2; "
            f"run: python -m ensurepip, then {COMMAND}"
        )


def check_prerequisites() -> None:
    """Check what pip needs to read the sdist.

    Raises:
        SystemExit: torch, setuptools or a suitable pip is missing.
    """
    for module, command in PREREQUISITES.items():
        if importlib.util.find_spec(module) is None:
            sys.exit(
                f"{sys.executable}: {module} is not installed, but detectron2 needs it; "
                f"run: {command}, then {COMMAND}"
            )
    version = importlib.metadata.version("pip")
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) >= (26, 3):
        sys.exit(
            f"pip: found version {version}, expected one below 26.3, which refuses {SDIST}; "
            f"run: python -m pip install 'pip<26.3', then {COMMAND}"
        )


def check_sha256(archive: Path) -> None:
    """Check the archive's content against the pinned checksum.

    Raises:
        SystemExit: it differs.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(
            f"{archive.name}: found sha256 {found}, expected {SHA256}; nothing was installed: "
            "the package registry serves another file"
        )


def download(folder: Path) -> Path:
    """Fetch the sdist through pip (its index, mirror and certificates), with the pinned checksum.

    Raises:
        SystemExit: pip failed, or the file is not the pinned one.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SDIST} --hash=sha256:{SHA256}\n", encoding="utf-8")
    source_only = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:")
    place = ("--dest", str(folder), "--requirement", str(requirements))
    run_pip("download", *source_only, "--require-hashes", *place)
    (archive,) = folder.glob("*.tar.gz")
    check_sha256(archive)
    return archive


def apply_edits(package: Path, edits: Iterable[dict]) -> None:
    """Replace text in files below ``package``; nothing is written unless every count is right.

    Args:
        package: the folder ``detectron2``.
        edits: dicts with ``file``, ``old``, ``new`` and ``count``, applied in this order.

    Raises:
        SystemExit: a text occurs another number of times than expected.
    """
    texts: dict[Path, str] = {}
    for edit in edits:
        path = package / edit["file"]
        if path not in texts:
            texts[path] = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = texts[path].count(edit["old"])
        if found != edit["count"]:
            sys.exit(
                f"{edit['file']}: found {edit['old']!r} {found} times, expected {edit['count']}; "
                "this is not detectron2 0.6: nothing was installed"
            )
        texts[path] = texts[path].replace(edit["old"], edit["new"])
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def stage(archive: Path, folder: Path) -> Path:
    """Unpack the sdist into ``folder``, edit and complete it; return its root."""
    # Pythons before 3.11.4 lack the filter; the checksum has fixed the content already.
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as file:
        file.extractall(folder, **safe)
    (source,) = (path for path in folder.iterdir() if (path / "detectron2").is_dir())
    apply_edits(source / "detectron2", json.loads(EDITS.read_text(encoding="utf-8")))
    root = folder / "staged"
    shutil.copytree(source / "detectron2", root / "detectron2")
    for project in PROJECTS:
        name = Path(project).name
        shutil.copytree(source / "projects" / project, root / "detectron2" / "projects" / name)
    shutil.copy(source / "LICENSE", root)
    (root / "detectron2" / "_C.py").write_text(PLACEHOLDER, encoding="utf-8")
    (root / "setup.py").write_text(SETUP, encoding="utf-8")
    return root


def install_pure() -> None:
    """Install the pure-Python detectron2, or leave nothing of it."""
    check_prerequisites()
    with tempfile.TemporaryDirectory() as folder:
        print(f"Downloading {SDIST}", flush=True)
        root = stage(download(Path(folder)), Path(folder))
        print("Installing it as a pure-Python detectron2 0.6", flush=True)
        try:
            # --ignore-installed: pip refuses to uninstall what an interruption left half.
            run_pip("install", "--no-deps", "--no-build-isolation", "--ignore-installed", str(root))
            error = import_error()
            if error:
                sys.exit(
                    f"detectron2: cannot be imported after the installation ({error}), so it was "
                    f"removed; install what is missing, then run: {COMMAND}"
                )
        except BaseException:
            remove()
            raise


def install_official(replace: bool) -> None:
    """Build and install the official source; ``replace`` the pure-Python one."""
    print(f"Building {OFFICIAL}: some minutes, needs git, GitHub and a C++ compiler", flush=True)
    force = ("--force-reinstall", "--no-deps") if replace else ()
    run_pip("install", "--no-build-isolation", *force, OFFICIAL, show=True)
    error = import_error()
    if error:
        sys.exit(f"detectron2: built, but cannot be imported ({error})")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", action="store_true", help="build the official source")
    return parser


def setup_opencv() -> None:
    """Install OpenCV unless there is a cv2, whichever distribution brought it.

    Raises:
        SystemExit: pip failed, or cv2 cannot be imported.
    """
    folder = location("cv2")
    if folder is None:
        check_pip()
        print(f"Installing {OPENCV}", flush=True)
        run_pip("install", OPENCV)
    error = import_error("cv2")
    if error:
        sys.exit(
            f"{folder or OPENCV}: this cv2 cannot be imported ({error}); run: python -m pip "
            f"install --force-reinstall --no-deps {OPENCV}, then {COMMAND}"
        )
    print(f"{folder}: cv2 is installed and can be imported" if folder else "cv2 is ready")


def setup_detectron2(official: bool) -> None:
    """Install detectron2 unless there is nothing to do.

    Args:
        official: build the official source, also where the pure-Python one is installed.

    Raises:
        SystemExit: the one that is there cannot be imported, or a step failed.
    """
    folder = location()
    ours = folder is not None and is_ours(folder)
    if folder is not None and not (ours and official):
        error = import_error()
        if not error and (is_recorded() or not ours):
            print(f"{folder}: detectron2 is installed and can be imported, nothing to do")
            return
        if not ours:
            sys.exit(
                f"{folder}: this detectron2 cannot be imported ({error}); repair it, or run: "
                f"python -m pip uninstall detectron2, then {COMMAND}"
            )
    check_pip()
    if official:
        install_official(replace=ours)
    else:
        install_pure()
    print("detectron2 is ready")


def main() -> None:
    """Set up cv2, which detectron2 imports, and detectron2."""
    args = make_parser().parse_args()
    setup_opencv()
    setup_detectron2(args.official)


def invoke_main() -> None:
    """Run; Ctrl-C and a disk that cannot be written end with one line."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted; run this again")
    except OSError as error:
        place = error.filename or os.environ.get("TMPDIR") or "/tmp"
        sys.exit(
            f"{place}: cannot be written ({error.strerror}), so nothing was installed; free space, "
            f"or name another folder for temporary files with TMPDIR, then run: {COMMAND}"
        )


if __name__ == "__main__":
    invoke_main()
