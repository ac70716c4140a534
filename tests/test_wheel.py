"""A wheel is whole: it holds every file that something opens, and works far from a checkout."""

from __future__ import annotations

import ast
import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest
from helpers.wheels import FOLDERS, build_wheel, copy_sources, pip
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tagclip import projects

CONFIG = "voc/tagclip_vitb16_voc_inductive_convtrust.yaml"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, without dependencies."""
    target = tmp_path_factory.mktemp("target")
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def files_of_checkout(source: Path) -> Iterator[tuple[str, Path]]:
    """(Name in a wheel, file) of everything but what is only read by people."""
    folders = {folder: name.replace(".", "/") for name, folder in projects._FOLDERS.items()}
    for name in (*FOLDERS, "datasets"):
        for path in filter(Path.is_file, (source / name).rglob("*")):
            file = path.relative_to(source)
            # A message of `tagclip prepare` names the README.md of datasets.
            if path.suffix == ".png" or (path.suffix == ".md" and name != "datasets"):
                continue
            if name == "tagclip":
                yield file.as_posix(), path
                continue
            # The nearest folder above it that is a package; none: it lies below the model zoo.
            above = next((f for f in map(str, file.parents) if f in folders), None)
            is_data = above is None or file.parts[-2] in ("configs", "assets")
            if name == "configs" or is_data:
                yield f"tagclip/model_zoo/{file.as_posix()}", path
            else:
                yield f"{folders[above]}/{file.relative_to(above).as_posix()}", path


def test_nothing_is_forgotten(source: Path, wheel: Path) -> None:
    """With the content of the checkout, and nothing besides."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    expected = {name: path.read_bytes() for name, path in files_of_checkout(source)}
    metadata = {name for name in found if PurePosixPath(name).parts[0].endswith(".dist-info")}
    assert found.keys() - metadata == expected.keys()
    assert all(found[name] == content for name, content in expected.items())
    licences = {PurePosixPath(name).name for name in metadata if "/licenses/" in name}
    assert licences == {"LICENSE", "THIRD_PARTY.md"}


# `tagclip setup-detectron2` brings the first two, torch the third; what imports the others names
# them where they are missing.
OTHERS = {"detectron2", "cv2", "triton", "fiftyone", "supervision", "mmcv", "mmseg"}


def imported_modules(source: Path) -> set[str]:
    """First parts of the names of all modules that are imported, without Python's and ours."""
    files = {path for _, path in files_of_checkout(source) if path.suffix == ".py"}
    found = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_bytes()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    # The scripts of datasets import the files beside them.
    ours = {"tagclip", *(path.stem for path in source.glob("datasets/*.py"))}
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names - ours


def pins_of(path: Path) -> dict[str, str]:
    """Package -> version."""
    pairs = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pairs}


def test_what_is_imported_is_required(source: Path, wheel: Path, repository: Path) -> None:
    """By the wheel or one of its extras; what the wheel requires is pinned, in the range of it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    modules = imported_modules(source)
    assert modules > {"PIL", "torch", "gradio", "av"}
    providers = importlib.metadata.packages_distributions()
    required = {canonicalize_name(Requirement(line).name) for line in lines}
    unknown = {
        module
        for module in modules - OTHERS
        if required.isdisjoint(map(canonicalize_name, providers.get(module, [module])))
    }
    assert not unknown
    plain = pins_of(repository / "requirements.txt")
    pins = {k: v for path in repository.glob("requirements*.txt") for k, v in pins_of(path).items()}
    for requirement in map(Requirement, lines):
        version = (pins if requirement.marker else plain)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_a_source_distribution_gives_the_same_wheel(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    """Which is how `python -m build` makes one."""
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    other = build_wheel(tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(other) as two:
        assert {i.filename: i.CRC for i in one.infolist()} == {
            i.filename: i.CRC for i in two.infolist()
        }


@pytest.fixture
def run(target: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run this Python in an empty folder, where tagclip is that of the wheel.

    -S leaves out what makes a checkout importable, an editable installation and .pth files, and
    the packages of this environment, which come back with PYTHONPATH if `installed`.
    """
    here = tmp_path / "empty"
    here.mkdir()

    def call(*words: str, installed: bool = False) -> subprocess.CompletedProcess:
        packages = [path for path in sys.path if installed and "site-packages" in path]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(target), *packages])}
        command = [sys.executable, "-S", *words]
        return subprocess.run(
            command, cwd=here, env=environment, capture_output=True, text=True, check=False
        )

    return call


# Heavy imports cost more than all the rest: one process.
CODE = f"""
import sys, tagclip
from tagclip import cli
from tagclip.projects import minibench, same_project_file
sys.argv = ["tagclip", "cost", "--config-file", "{CONFIG}"]
cli.main()
clip = tagclip.load_config("minibench/tagclip_minibench_composition.yaml").MODEL.CLIP
print(minibench.dataset_root(), tagclip.__file__, clip.NAME, clip.PRETRAINED, sep="\\n")
print(same_project_file("/of/another/projects/MiniBench/assets/mini_clip.safetensors"))
"""


def test_the_command_runs_in_an_empty_folder(run: Callable, target: Path) -> None:
    assert (target / "bin" / "tagclip").is_file()
    shown = run("-c", CODE, installed=True)
    assert shown.returncode == 0, shown.stderr[-4000:]
    *_, data, package, name, weights, same = shown.stdout.splitlines()
    assert "Parameters" in shown.stdout and data == "datasets/minibench"
    assert package == str(target / "tagclip" / "__init__.py") and same == weights
    assert all(Path(path).is_file() and path.startswith(str(target)) for path in (name, weights))


@pytest.mark.parametrize(
    ("words", "output", "error"),
    [
        ("tagclip --help", "usage: tagclip COMMAND", ""),
        ("tagclip configs", CONFIG, ""),
        ("tagclip setup-detectron2 --help", "pb1-detectron2", ""),
        (
            "tagclip setup-detectron2",
            "",
            f"{sys.executable}: pip is not installed, but brings detectron2 and cv2; run: python "
            "-m ensurepip, then tagclip setup-detectron2\n",
        ),
        (
            f"tagclip train --config-file {CONFIG}",
            "",
            "NotInstalledError: tagclip needs detectron2, which is not installed; run: tagclip "
            "setup-detectron2\n",
        ),
        (
            "tagclip run-onnx folder image.png labels.png",
            "",
            "ConfigError: No module named 'numpy'; run: pip install numpy onnxruntime pillow\n",
        ),
    ],
)
def test_where_nothing_else_is_installed(
    words: str, output: str, error: str, run: Callable
) -> None:
    """What can run does, the others end with what to do."""
    ended = run("-m", *words.split())
    assert (ended.stderr, ended.returncode) == (error, int(bool(error)))
    assert output in ended.stdout
