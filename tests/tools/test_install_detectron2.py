"""tools/install_detectron2.py without a network: exact edits, pinned file, nothing half."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.tiny_run import exit_of, load_tool


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    """A fresh import, so that a test may replace its parts."""
    return load_tool(repository / "tools" / "install_detectron2.py")


def edit(old: str, new: str, count: int, file: str = "a.py") -> dict[str, Any]:
    return {"file": file, "old": old, "new": new, "count": count, "why": "a test"}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "detectron2"
    folder.mkdir()
    (folder / "a.py").write_text("x = np.int\ny = np.int\n")
    (folder / "b.py").write_text("import pkg_resources\n")
    return folder


def test_edits_apply_in_order_and_see_each_other(tool: ModuleType, package: Path) -> None:
    edits = [edit("np.int", "int", 2), edit("x = int", "x = bool", 1)]
    tool.apply_edits(package, [*edits, edit("import pkg_resources\n", "", 1, "b.py")])
    assert (package / "a.py").read_text() == "x = bool\ny = int\n"
    assert (package / "b.py").read_text() == ""


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (edit("np.int", "int", 1), "a.py: found 'np.int' 2 times, expected 1"),
        (edit("np.int", "int", 3), "a.py: found 'np.int' 2 times, expected 3"),
        (edit("np.float", "float", 1, "b.py"), "b.py: found 'np.float' 0 times, expected 1"),
        (edit("np.float", "float", 1, "c.py"), "c.py: found 'np.float' 0 times, expected 1"),
    ],
)
def test_a_wrong_count_writes_nothing(
    wrong: dict[str, Any], found: str, tool: ModuleType, package: Path
) -> None:
    before = {path.name: path.read_text() for path in package.iterdir()}
    right = edit("import pkg_resources\n", "", 1, "b.py")
    message = exit_of(tool.apply_edits, package, [right, wrong])
    assert message == f"{found}; this is not detectron2 0.6: nothing was installed"
    assert {path.name: path.read_text() for path in package.iterdir()} == before


def test_the_shipped_edits_are_in_the_installed_detectron2(tool: ModuleType) -> None:
    edits = json.loads(tool.EDITS.read_text())
    assert len(edits) == 22
    for each in edits:
        assert set(each) == {"file", "old", "new", "count", "why"}
        assert each["count"] >= 1 and each["old"] != each["new"]
    folder = tool.location()
    if not tool.is_ours(folder):
        pytest.skip("this environment has another detectron2 than the edited one")
    for each in edits:
        text = (folder / each["file"]).read_text()
        assert text.count(each["new"]) >= each["count"] or not each["new"], each
        if each["old"] not in each["new"]:
            assert each["old"] not in text, each


def test_another_file_is_refused(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip itself compares the hash; a file that slips through is compared again."""

    def serve(command: str, *arguments: str, show: bool = False) -> None:
        assert command == "download" and "--require-hashes" in arguments
        requirements = Path(arguments[arguments.index("--requirement") + 1])
        assert requirements.read_text() == f"pb1-detectron2==0.6 --hash=sha256:{tool.SHA256}\n"
        (tmp_path / "pb1-detectron2-0.6.tar.gz").write_bytes(b"something else")

    monkeypatch.setattr(tool, "run_pip", serve)
    found = hashlib.sha256(b"something else").hexdigest()
    message = exit_of(tool.download, tmp_path)
    assert message.startswith(f"pb1-detectron2-0.6.tar.gz: found sha256 {found}, expected 5d2e9e51")
    assert "\n" not in message
    monkeypatch.setattr(tool, "SHA256", found)
    assert tool.download(tmp_path).name == "pb1-detectron2-0.6.tar.gz"


def make_sdist(tool: ModuleType, path: Path) -> Path:
    """A small sdist of the same layout."""
    projects = {f"projects/{name}/__init__.py": "" for name in tool.PROJECTS}
    files = {"detectron2/__init__.py": "x = np.int\n", "LICENSE": "Apache", **projects}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_staging_edits_and_completes(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = tmp_path / "edits.json"
    edits.write_text(json.dumps([edit("np.int", "int", 1, "__init__.py")]))
    monkeypatch.setattr(tool, "EDITS", edits)
    folder = tmp_path / "work"
    folder.mkdir()
    root = tool.stage(make_sdist(tool, tmp_path / "sdist.tar.gz"), folder)
    package = root / "detectron2"
    assert (package / "__init__.py").read_text() == "x = int\n"
    assert {path.name for path in (package / "projects").iterdir()} == {
        "point_rend",
        "deeplab",
        "panoptic_deeplab",
    }
    assert (root / "LICENSE").read_text() == "Apache"
    assert tool.is_ours(package)
    compile((root / "setup.py").read_text(), "setup.py", "exec")


def test_placeholder_explains_missing_operators(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "_C.py"
    path.write_text(tool.PLACEHOLDER)
    placeholder = load_tool(path)
    assert "pure-Python" in placeholder.get_compiler_version()
    assert "pure-Python" in placeholder.get_cuda_version()
    assert placeholder.has_cuda() is False
    # Introspection (copy, inspect, doctest) asks for such names and expects AttributeError.
    assert not hasattr(placeholder, "__wrapped__")
    with pytest.raises(
        ImportError, match=r"_C\.nms_rotated is a compiled .*setup-detectron2 --official"
    ):
        placeholder.nms_rotated  # noqa: B018


@pytest.mark.parametrize(
    ("version", "fits"),
    [("23.2.1", True), ("26.2.9", True), ("26.3", False), ("26.3.dev0", False), ("27", False)],
)
def test_pip_that_refuses_the_sdist_is_named(
    version: str, fits: bool, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool.importlib.metadata, "version", lambda name: version)
    message = exit_of(tool.check_prerequisites)
    if fits:
        assert message is None
    else:
        assert message.startswith(f"pip: found version {version}, expected one below 26.3, which")
        assert message.endswith(
            "run: python -m pip install 'pip<26.3', then tagclip setup-detectron2"
        )


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("torch", "python -m pip install torch torchvision, then tagclip setup-detectron2"),
        ("setuptools", "python -m pip install setuptools, then tagclip setup-detectron2"),
        ("pip", "python -m ensurepip, then tagclip setup-detectron2"),
    ],
)
def test_what_is_missing_is_named(
    module: str, remedy: str, tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        tool.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    message = exit_of(tool.check_pip if module == "pip" else tool.check_prerequisites)
    assert message.startswith(f"{sys.executable}: {module} is not installed, but ")
    assert message.endswith(f"; run: {remedy}")


def test_failing_pip_is_one_line(tool: ModuleType, capfd: pytest.CaptureFixture) -> None:
    message = exit_of(tool.run_pip, "install", "--no-index", "tagclip-no-such-package")
    assert message.startswith("pip install: failed with exit code 1, see above; check the connect")
    assert "No matching distribution found for tagclip-no-such-package" in capfd.readouterr().err


@pytest.fixture
def run(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, list[str]]]:
    """Call the tool's ``main`` in a made-up environment: what it leaves with, what it did."""

    def call(
        *arguments: str, folder: Path | None, error: str = "", recorded: bool = True, cv2: str = ""
    ) -> tuple[Any, list[str]]:
        done: list[str] = []
        is_there = cv2 != "absent"

        def import_error(modules: str = "") -> str:
            return error if modules != "cv2" else cv2 * is_there

        def location(package: str = "") -> Path | None:
            return folder if package != "cv2" else tmp_path if is_there else None

        monkeypatch.setattr(sys, "argv", ["install_detectron2.py", *arguments])
        monkeypatch.setattr(tool, "location", location)
        monkeypatch.setattr(tool, "import_error", import_error)
        monkeypatch.setattr(tool, "run_pip", lambda *words: done.append(" ".join(words)))
        monkeypatch.setattr(tool, "is_recorded", lambda: recorded)
        monkeypatch.setattr(tool, "install_pure", lambda: done.append("pure"))
        monkeypatch.setattr(
            tool, "install_official", lambda replace: done.append(f"official, replace {replace}")
        )
        return exit_of(tool.main), done

    return call


def test_an_existing_detectron2_is_kept(run: Callable, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "_C.py").touch()
    theirs = tmp_path / "theirs"
    assert run(folder=theirs) == (None, [])
    assert run("--official", folder=theirs) == (None, [])
    assert run(folder=theirs, recorded=False) == (None, [])
    assert run(folder=ours) == (None, [])
    # Only what this tool left half is done again.
    assert run(folder=ours, recorded=False) == (None, ["pure"])
    assert run(folder=ours, error="ImportError: x") == (None, ["pure"])
    message, done = run(folder=theirs, error="ImportError: libc10.so")
    assert message.startswith(f"{theirs}: this detectron2 cannot be imported (ImportError: libc10")
    assert done == []


def test_it_installs_where_there_is_none(run: Callable, tmp_path: Path) -> None:
    assert run(folder=None) == (None, ["pure"])
    assert run("--official", folder=None) == (None, ["official, replace False"])
    (tmp_path / "_C.py").touch()
    assert run("--official", folder=tmp_path) == (None, ["official, replace True"])


def test_cv2_comes_first(run: Callable, tmp_path: Path) -> None:
    """detectron2 imports it; and it is looked for where detectron2 is installed."""
    opencv = "install opencv-python-headless"
    assert run(folder=None, cv2="absent") == (None, [opencv, "pure"])
    assert run(folder=tmp_path, cv2="absent") == (None, [opencv])
    message, done = run(folder=None, cv2="ImportError: libGL.so.1")
    assert done == []
    assert message == (
        f"{tmp_path}: this cv2 cannot be imported (ImportError: libGL.so.1); run: python -m pip "
        "install --force-reinstall --no-deps opencv-python-headless, then tagclip setup-detectron2"
    )


def test_here_there_is_nothing_to_do(
    tool: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    assert exit_of(tool.main) is None
    cv2, detectron2 = capsys.readouterr().out.splitlines()
    assert cv2.endswith("cv2: cv2 is installed and can be imported")
    assert detectron2.endswith("detectron2 is installed and can be imported, nothing to do")


@pytest.mark.parametrize("failure", ["pip", "import"])
def test_a_failed_installation_leaves_nothing(
    failure: str, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, info = tmp_path / "detectron2", tmp_path / "detectron2-0.6.dist-info"

    def install(*arguments: str) -> None:
        package.mkdir()
        (package / "_C.py").touch()
        info.mkdir()
        if failure == "pip":
            raise SystemExit("pip install: failed")

    monkeypatch.setattr(tool, "check_prerequisites", lambda: None)
    monkeypatch.setattr(tool, "download", lambda folder: folder / "sdist.tar.gz")
    monkeypatch.setattr(tool, "stage", lambda archive, folder: folder)
    monkeypatch.setattr(tool, "run_pip", install)
    monkeypatch.setattr(tool, "import_error", lambda: "ImportError: numpy")
    monkeypatch.setattr(tool, "location", lambda: package if package.exists() else None)
    message = exit_of(tool.install_pure)
    assert message.startswith("pip install: f" if failure == "pip" else "detectron2: cannot be imp")
    assert not package.exists() and not info.exists()


def test_an_official_detectron2_is_never_removed(
    tool: ModuleType, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "location", lambda: package)
    tool.remove()
    assert (package / "a.py").is_file()
