"""The walk over the files of a dataset: order, errors, dead processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from tagclip.data.datasets.pairing import NamedFiles
from tagclip.data.datasets.register import _PairedFiles
from tagclip.data.datasets.walk import files_below, map_files
from tagclip.demo.media import find_images
from tagclip.errors import DatasetError


def _late(number: int) -> int:
    """Later items have less to do."""
    sum(range((5 - number) * 10**5))
    return number * number


def _refuse(number: int) -> int:
    if number == 3:
        raise DatasetError(f"file {number}: damaged")
    return number


def _die(number: int) -> int:
    os._exit(7)


class _Noted:
    """A function that notes how often it is handed to a process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, number: int) -> int:
        return number

    def __getstate__(self) -> dict[str, Path]:
        with self.file.open("a") as file:
            file.write("handed on\n")
        return self.__dict__


def test_the_function_is_not_handed_on_with_each_item(tmp_path: Path) -> None:
    file = tmp_path / "noted"
    file.touch()
    assert list(map_files(_Noted(file), range(500), "toy", 2)) == list(range(500))
    assert len(file.read_text().splitlines()) <= 2


@pytest.mark.parametrize("processes", [None, 0, 1, 2])
def test_results_keep_the_order_of_the_items(processes: int | None) -> None:
    assert list(map_files(_late, range(5), "toy", processes)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("processes", [None, 0, 2])
def test_an_error_of_one_file_arrives_as_it_is(processes: int | None) -> None:
    with pytest.raises(DatasetError, match="^file 3: damaged$"):
        list(map_files(_refuse, range(5), "toy", processes))


def test_what_has_not_begun_is_dropped_after_an_error() -> None:
    begun = []
    gate = threading.Event()

    def read(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise DatasetError("damaged")
        gate.wait(0.2)

    with pytest.raises(DatasetError):
        list(map_files(read, range(1000), "toy"))
    assert len(begun) < 100


def test_a_dead_process_is_one_line() -> None:
    with pytest.raises(DatasetError, match="^toy: a worker process died.*fewer --workers") as error:
        list(map_files(_die, range(4), "toy", processes=2))
    assert "\n" not in str(error.value)


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(map_files(_late, range(5), "toy"))
    assert capsys.readouterr().err == ""


def tree_with_links(root: Path) -> None:
    """a/1 and b/c/2, a link back to the root in each folder, a link to a folder elsewhere."""
    for name in ("root/a/1.png", "root/b/c/2.png", "elsewhere/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for folder in ("a", "b", "b/c"):
        (root / "root" / folder / "0_back").symlink_to(root / "root")
        (root / "root" / folder / "0_over").symlink_to(root / "root" / "b")
    (root / "root" / "a" / "z").symlink_to(root / "elsewhere")


def test_links_that_lead_back_add_nothing(tmp_path: Path) -> None:
    tree_with_links(tmp_path)
    found = [
        path.relative_to(tmp_path / "root").as_posix() for path in files_below(tmp_path / "root")
    ]
    assert found == ["a/1.png", "b/c/2.png", "a/z/3.png"]


def test_what_other_programs_leave_behind_is_no_data(tmp_path: Path) -> None:
    for name in ("1.png", "._1.png", ".DS_Store", ".ipynb_checkpoints/1-checkpoint.png", "a/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in files_below(tmp_path)] == ["1.png", "2.png"]


def test_a_dataset_and_the_demo_list_each_file_once(tmp_path: Path) -> None:
    """Two links that lead back made a listing that took minutes for a handful of images."""
    for kind in ("images", "labels"):
        for name in ("1", "2"):
            path = tmp_path / kind / "deep" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L" if kind == "labels" else "RGB", (8, 8)).save(path)
        for name in ("x", "y"):
            (tmp_path / kind / "deep" / name).symlink_to(tmp_path / kind)
    files = _PairedFiles(
        f"links_{tmp_path.name}",
        NamedFiles("image", str(tmp_path / "images"), ("png",)),
        NamedFiles("label", str(tmp_path / "labels"), ("png",)),
    )
    images, labels = files.files_by_name()
    assert list(images) == list(labels) == ["deep/1", "deep/2"]
    pairs = find_images([str(tmp_path / "images")], tmp_path / "out")
    assert [path.name for path, _ in pairs] == ["1.png", "2.png"]
