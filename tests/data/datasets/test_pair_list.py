"""Lists of images and labels in every form that is in use: read right, or refused with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from helpers.toy_dataset import forget, vocabulary_tree, write_json
from PIL import Image

from tagclip.data import register_folder_dataset
from tagclip.data.datasets.selection import left_out, skip_bad_samples
from tagclip.errors import ConfigError, DatasetError

# Image -> label, below two folders; one name is that of its label, the others have nothing common.
FILES = {
    "a.jpg": "x1.png",
    "sub/b.JPG": "deep/er/x2.tif",
    "c d.png": "x 3.png",
    "same.jpg": "same.png",
    "g,h.jpg": "x4.png",
    "#5.jpg": "x5.png",
}


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The files, in data/images and data/labels, and a list beside them; registered as "listed"."""
    root = tmp_path / "data"
    for kind, names in (("images", FILES), ("labels", FILES.values())):
        for name in names:
            path = root / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4)).save(path)
    write_json(root / "v.json", vocabulary_tree(["cat", "dog"]))
    register_folder_dataset(
        "listed", root / "images", root / "labels", root / "v.json", pairs=root / "list.txt"
    )
    yield root
    forget("listed")


def _listed(data: Path, text: str | bytes) -> dict[str, str]:
    content = text if isinstance(text, bytes) else text.replace("ROOT", str(data)).encode()
    (data / "list.txt").write_bytes(content)
    return {
        str(Path(sample["file_name"]).relative_to(data / "images")): str(
            Path(sample["sem_seg_file_name"]).relative_to(data / "labels")
        )
        for sample in DatasetCatalog.get("listed")
    }


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("a.jpg x1.png", "a.jpg"),
        ("a.jpg\tx1.png", "a.jpg"),
        ("a.jpg,x1.png", "a.jpg"),
        ("a.jpg , x1.png", "a.jpg"),
        ("a.jpg   x1.png  ", "a.jpg"),
        ('"a.jpg","x1.png"', "a.jpg"),
        ("a x1", "a.jpg"),
        ("./a.jpg ./x1.png", "a.jpg"),
        ("images/a.jpg labels/x1.png", "a.jpg"),
        ("/images/a.jpg /labels/x1.png", "a.jpg"),
        ("data/images/a.jpg data/labels/x1.png", "a.jpg"),
        ("ROOT/images/a.jpg ROOT/labels/x1.png", "a.jpg"),
        ("ROOT/images/a.jpg x1.png", "a.jpg"),
        ("../images/a.jpg ../labels/x1.png", "a.jpg"),
        ("a.jpg x1.png # the first", "a.jpg"),
        ("sub\\b.JPG deep\\er\\x2.tif", "sub/b.JPG"),
        ("sub/b deep/er/x2", "sub/b.JPG"),
        (".\\images\\sub\\b.JPG\t.\\labels\\deep\\er\\x2.tif", "sub/b.JPG"),
        ("c d.png x 3.png", "c d.png"),
        ("c d.png,x 3.png", "c d.png"),
        ("c d x 3", "c d.png"),
        ("same.jpg", "same.jpg"),
        ("same", "same.jpg"),
        ("images/same.jpg", "same.jpg"),
        ("same.jpg same.png", "same.jpg"),
        ("g,h.jpg x4.png", "g,h.jpg"),
        ("g,h.jpg,x4.png", "g,h.jpg"),
        ("images/#5.jpg x5.png", "#5.jpg"),
    ],
)
def test_forms_of_a_line(data: Path, line: str, image: str) -> None:
    assert _listed(data, f"{line}\n") == {image: FILES[image]}


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa.jpg x1.png\nsame.jpg\n",
        b"# image label\r\na.jpg x1.png\r\n\r\nsame.jpg same.png\r\n",
        b"#a.jpg x5.png\nsame.jpg\na.jpg x1.png\na x1\n",
        b"a.jpg\tx1.png\r\n  same",
    ],
)
def test_forms_of_a_file(data: Path, content: bytes) -> None:
    assert _listed(data, content) == {"a.jpg": "x1.png", "same.jpg": "same.png"}


@pytest.mark.parametrize(
    ("line", "remedy", "right"),
    [
        ("a.jpg", "write its label behind it, after a tab", "a.jpg\tx1.png"),
        ("a.jpg gone.png", "there is no label gone.png at ROOT/labels: mend its path", "a x1"),
        ("gone.jpg x1.png", "mend the paths, which may begin at ROOT/images", "a x1"),
        ("image,label", "or put a # before a line that is none", "#image,label\na x1"),
        ("a.jpg x1.png train", "there is no label x1.png train at", "a.jpg x1.png"),
    ],
)
def test_what_is_refused_says_what_to_change(
    data: Path, line: str, remedy: str, right: str
) -> None:
    with pytest.raises(DatasetError) as caught:
        _listed(data, f"{line}\nsame.jpg\n")
    message = str(caught.value)
    start = f"dataset listed: {data / 'list.txt'}: 1 lines without files of {data / 'images'}"
    assert message.startswith(f"{start}, such as {line!r}; ") and "\n" not in message
    assert remedy.replace("ROOT", str(data)) in message
    expected = {"a.jpg": "x1.png", "same.jpg": "same.png"}
    assert _listed(data, f"{right}\nsame.jpg\n") == expected
    skip_bad_samples("listed", 0)
    assert _listed(data, f"{line}\nsame.jpg\n") == {"same.jpg": "same.png"}
    assert left_out("listed") == {"lines without files": 1}


@pytest.mark.parametrize(
    ("text", "found", "right"),
    [
        ("a x1\na.jpg x5.png", "a.jpg has two labels, ", "a x1"),
        ("a x1\nsame.jpg x1.png", "x1.png has two images, ", "a x1"),
        ("c d e.png", "can be read in 2 ways; write a tab between", "c\td e.png"),
        ("# nothing", "names no image", "a x1"),
    ],
)
def test_what_is_ambiguous_is_refused(data: Path, text: str, found: str, right: str) -> None:
    for path in ("images/c.jpg", "labels/d e.png", "labels/e.png"):
        (data / path).touch()
    with pytest.raises(DatasetError, match=found):
        _listed(data, text)
    assert len(_listed(data, right)) == 1


def test_files_of_others_above_the_folder_are_not_taken(data: Path, tmp_path: Path) -> None:
    for name in ("a", "a.jpg", "gone.jpg", "x1.png", "x1", "other/gone.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert _listed(data, "a x1\n") == _listed(data, "a.jpg x1.png") == {"a.jpg": "x1.png"}
    for line in ("gone.jpg x1.png", "other/gone.jpg x1.png"):
        with pytest.raises(DatasetError, match="mend the paths"):
            _listed(data, line)


def test_files_anywhere(data: Path, tmp_path: Path) -> None:
    """Images outside of the folder have names of their own."""
    lines = []
    for place in ("one", "two"):
        path = tmp_path / place / "a.jpg"
        path.parent.mkdir()
        Image.new("L", (4, 4)).save(path)
        Image.new("L", (4, 4)).save(path.with_name("l.png"))
        lines.append(f"{path}\t{path.with_name('l.png')}")
    (data / "list.txt").write_text("\n".join([*lines, "a.jpg x1.png"]))
    samples = DatasetCatalog.get("listed")
    assert [sample["image_id"] for sample in samples] == ["data/images/a", "one/a", "two/a"]
    assert [Path(sample["sem_seg_file_name"]).name for sample in samples] == [
        "x1.png",
        *["l.png"] * 2,
    ]


def test_images_of_one_name_and_two_extensions(data: Path) -> None:
    Image.new("L", (4, 4)).save(data / "images" / "a.png")
    assert _listed(data, "a.jpg x1.png\na.png x5.png") == {"a.jpg": "x1.png", "a.png": "x5.png"}
    assert [sample["image_id"] for sample in DatasetCatalog.get("listed")] == ["a.jpg", "a.png"]


def test_pairs_and_image_list_exclude_each_other(data: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of them; leave out the image_list"):
        register_folder_dataset("both", data, data, data / "v.json", "a.txt", pairs="b.txt")
