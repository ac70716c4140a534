"""Lists of images in every form that is in use: read right, or refused with what to change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from helpers.toy_dataset import forget, vocabulary_tree, write_json
from PIL import Image

from tagclip.data import register_folder_dataset, register_zero_shot_sem_seg
from tagclip.data.datasets.selection import left_out, skip_bad_samples
from tagclip.errors import DatasetError

KEYS = ("a", "sub/b", "c d", "e.f", "g,h")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Five images with labels in data/images and data/labels, registered as "listed"."""
    for key in KEYS:
        for kind, extension in (("images", "JPG"), ("labels", "png")):
            path = tmp_path / "data" / kind / f"{key}.{extension}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    write_json(tmp_path / "v.json", vocabulary_tree(["cat", "dog"]))
    (tmp_path / "link").symlink_to("data")
    _register(tmp_path / "data")
    yield tmp_path / "data"
    forget("listed")


def _register(data: Path) -> None:
    register_zero_shot_sem_seg(
        "listed",
        data / "images",
        data / "labels",
        data.parent / "v.json",
        image_list=data / "list.txt",
    )


def _listed(data: Path, text: str | bytes) -> list[str]:
    content = text if isinstance(text, bytes) else text.replace("ROOT", str(data)).encode()
    (data / "list.txt").write_bytes(content)
    return [sample["image_id"] for sample in DatasetCatalog.get("listed")]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("a", "a"),
        ("a.jpg", "a"),
        ("a.png", "a"),
        ("./a", "a"),
        ("./sub/../a.JPG", "a"),
        ("sub/b", "sub/b"),
        ("sub\\b.jpg", "sub/b"),
        (".\\sub\\b", "sub/b"),
        ("sub//b", "sub/b"),
        ("../images/a.jpg", "a"),
        ("images/sub/b.jpg", "sub/b"),
        ("ROOT/images/a.jpg", "a"),
        ("ROOT/../link/images/sub/b.jpg", "sub/b"),
        ("c d", "c d"),
        ("c d.jpg", "c d"),
        ("e.f", "e.f"),
        ("e.f.jpg", "e.f"),
        ("g,h", "g,h"),
        ("a.jpg a.png", "a"),
        ("a\ta.png", "a"),
        ("a.jpg,a.png", "a"),
        ("images/sub/b.jpg labels/sub/b.png", "sub/b"),
        ("ROOT/images/a.jpg ROOT/labels/a.png", "a"),
        ("images\\a.jpg labels\\a.png", "a"),
    ],
)
def test_forms_of_a_line(data: Path, line: str, key: str) -> None:
    assert _listed(data, f"{line}\n") == [key]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa\nsub/b\n",
        b"a\r\nsub/b\r\n",
        b"\xef\xbb\xbf./a.jpg\r\n\r\n  sub\\b.jpg",
        b"sub/b\na\na.jpg\n",
        b"# the first two\r\na\r\n#\r\nsub/b\r\n#gone.jpg",
    ],
)
def test_forms_of_a_file(data: Path, content: bytes) -> None:
    assert _listed(data, content) == ["a", "sub/b"]


def test_names_with_a_suffix(data: Path) -> None:
    """A list may name the files or what they have in common."""
    for kind, extension in (("images", "JPG"), ("labels", "png")):
        for key in ("a", "sub/b"):
            path = data / kind / f"{key}.{extension}"
            path.rename(path.with_name(f"{path.stem}_{kind}.{extension}"))
    forget("listed")
    register_folder_dataset(
        "listed",
        data / "images",
        data / "labels",
        data.parent / "v.json",
        data / "list.txt",
        "_images",
        "_labels",
    )
    assert _listed(data, "a_images.JPG\nsub\\b\n") == ["a", "sub/b"]
    assert _listed(data, "a_images\nsub/b_images.JPG sub/b_labels.png\n") == ["a", "sub/b"]
    with pytest.raises(DatasetError, match=r"'sub/b_labels'; it is a label: .* here sub/b_images$"):
        _listed(data, "sub/b_labels\n")


def test_folders_that_are_links(data: Path) -> None:
    forget("listed")
    _register(data.parent / "link")
    assert _listed(data, "ROOT/images/a.jpg\n") == ["a"]


@pytest.mark.parametrize(
    ("line", "remedy", "right"),
    [
        ("a sub/b", "write one name a line", "a\nsub/b"),
        ("a.jpg sub/b.png", "write one name a line", "a.jpg"),
        ("/images/a.jpg /other/x.png", "write one name a line, or call the list pairs", "a"),
        ("a 1", "write one name a line", "a"),
        ("a b c", "write one name a line", "a"),
        ("../labels/a", "it leads out of the folder: list images below it", "a"),
        ("ROOT/labels/a.png", "it leads out of the folder: list images below it", "a"),
        ("..\\..\\a", "it leads out of the folder: list images below it", "a"),
        ("other/a.jpg", "write its path below the folder, or add the image", "a.jpg"),
        ("C:\\data\\a.jpg", "write its path below the folder, or add the image", "a.jpg"),
        ("A", "write its path below the folder, or add the image", "a"),
    ],
)
def test_what_is_refused_says_what_to_change(
    data: Path, line: str, remedy: str, right: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        _listed(data, f"{line}\nsub/b\n")
    message = str(caught.value)
    shown = line.replace("ROOT", str(data))
    assert f"{data / 'list.txt'}: 1 listed names without image in {data / 'images'}" in message
    assert f"such as {shown!r}; {remedy}" in message and "\n" not in message
    assert "a" in _listed(data, f"{right}\nsub/b\n")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("a\n".encode("utf-16"), "line 1 holds the byte 0xff, which is not UTF-8; save the"),
        (b"\xef\xbb\xbf\n", "names no"),
    ],
)
def test_files_without_names(data: Path, content: bytes, found: str) -> None:
    with pytest.raises(DatasetError) as caught:
        _listed(data, content)
    assert found in str(caught.value) and str(data / "list.txt") in str(caught.value)


def test_lines_without_image_are_left_out_if_bad_samples_are(data: Path) -> None:
    skip_bad_samples("listed", 0)
    assert _listed(data, "a\ngone\n") == ["a"]
    assert left_out("listed") == {"listed names without image": 1}
