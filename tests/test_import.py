"""`import tagclip` is cheap; whatever is used first registers everything in detectron2."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tagclip
from tagclip.errors import NotInstalledError


def run(code: str) -> str:
    """Run code in a process of its own, in which nothing is imported; return its output."""
    command = [sys.executable, "-W", "error::FutureWarning", "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_package_alone_loads_nothing_heavy() -> None:
    """And works where nothing else is installed."""
    absent = ("torch", "detectron2", "cv2", "numpy", "yaml", "PIL", "fvcore")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); import tagclip;"
        "print(tagclip.__version__, 'load_config' in dir(tagclip), len(sys.modules))"
    )
    version, is_listed, modules = run(code).split()
    assert (version, is_listed) == (tagclip.__version__, "True")
    assert int(modules) < 200


@pytest.mark.parametrize("package", ["tagclip", "tagclip.data"])
def test_public_names_are_where_type_checkers_see_them(repository: Path, package: str) -> None:
    """The three lists of names agree, and each name is what its module defines."""
    lazy = importlib.import_module(package)
    tree = ast.parse((repository / package.replace(".", "/") / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"{package}.{module}" for name, module in lazy._MODULES.items()}
    assert sorted(lazy.__all__) == lazy.__all__
    assert set(lazy.__all__) - {"register"} == set(seen)
    for name, module in seen.items():
        assert getattr(lazy, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match=f"module {package!r} has no attribute 'TagClip'"):
        lazy.TagClip  # noqa: B018


def test_public_names_are_listed() -> None:
    assert set(tagclip.__all__) <= set(dir(tagclip))


REGISTERED = """
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
def found():
    return ["TagCLIP" in META_ARCH_REGISTRY, "CLIPViT" in BACKBONE_REGISTRY,
            "TagCLIPHead" in SEM_SEG_HEADS_REGISTRY, "voc2012_val" in DatasetCatalog.list()]
"""


def test_nothing_is_registered_before_register() -> None:
    """Not by the module of the datasets either; threads may call it at the same time, and twice."""
    code = (
        "import tagclip, warnings; warnings.simplefilter('ignore')\n"
        f"import tagclip.data.datasets.builtin{REGISTERED}"
        "assert not any(found())\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    list(pool.map(lambda _: tagclip.register(), range(9)))\n"
        "assert all(found())"
    )
    run(code)


@pytest.mark.parametrize(
    "code",
    [
        "import tagclip; tagclip.Vocabulary",
        "from tagclip.config import add_tagclip_config\n"
        "from detectron2.config import get_cfg; add_tagclip_config(get_cfg())",
        "from tagclip.structures import Vocabulary; Vocabulary.from_metadata('voc2012_val')",
    ],
)
def test_whatever_is_used_first_registers(code: str) -> None:
    """Without a warning that no user can mend."""
    run(f"{code}{REGISTERED}assert all(found()), found()")


@pytest.mark.parametrize("missing", ["detectron2", "cv2"])
def test_what_is_not_installed_is_named(missing: str) -> None:
    message = f"tagclip needs {missing}, which is not installed; run: tagclip setup-detectron2"
    code = f"import sys; sys.modules['{missing}'] = None\n"
    library = "import tagclip\ntry: tagclip.load_config\nexcept ImportError as e: print(e)"
    assert run(code + library) == f"{message}\n"
    tool = "from tagclip import cli; sys.argv = ['', 'segment', '--input', 'a']; cli.main()"
    result = subprocess.run(
        [sys.executable, "-c", code + tool], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == f"{NotInstalledError.__name__}: {message}\n"
