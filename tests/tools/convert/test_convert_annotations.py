"""`tagclip labels convert --from`: annotations of tools that do not fit, and a json of COCO."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.convert_tool import coco, content, run
from PIL import Image

from tagclip.data import read_label
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("words", "names", "dog", "cat", "rest"),
    [
        ([], ["dog", "Cat"], 0, 1, 255),
        (["--unlabelled", "ignore"], ["dog", "Cat"], 0, 1, 255),
        (["--unlabelled", "background"], ["background", "dog", "Cat"], 1, 2, 0),
        (["--unlabelled", "cat"], ["dog", "Cat"], 0, 1, 1),
        (["--classes", "own.csv"], ["Background", "cat", "dog"], 9, 5, 0),
    ],
)
def test_coco(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    names: list[str],
    dog: int,
    cat: int,
    rest: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.csv").write_text("name,id\nBackground,0\ncat,5\ndog,9\n")
    run(tool, coco(tmp_path), "--from", "coco", "--output", "o", "--images", "images", *words)
    expected = np.full((10, 12), rest)
    expected[:, 9:] = 255
    expected[2:8, 2:8] = cat
    expected[3:6, 3:6] = dog
    assert np.array_equal(read_label("o/s/a.png"), expected)
    assert (read_label("o/b.png") == rest).all()
    assert Vocabulary.from_json("o/vocabulary.json").names == names
    assert json.loads(Path("o/index.json").read_text())["files"] == {
        "s/a.png": "s/a.jpg",
        "b.png": "b.jpg",
    }


def test_annotations_that_do_not_fit_write_nothing(tool: ModuleType, tmp_path: Path) -> None:
    path = coco(tmp_path)
    words = [path, "--from", "coco", "--output", tmp_path / "o", "--images", tmp_path / "images"]
    (tmp_path / "c.csv").write_text("name,id\nCats,0\n")
    message = r"lacks: 'dog' \(1 segments\), 'Cat' \(1 segments\); did you mean Cats\?; mend"
    with pytest.raises(DatasetError, match=message):
        run(tool, *words, "--classes", tmp_path / "c.csv")
    with pytest.raises(ConfigError, match=r"--unlabelled: found 'cat'; did you mean Cats\?"):
        run(tool, *words, "--classes", tmp_path / "c.csv", "--unlabelled", "cat")
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"images: lacks 1 of 2 annotated images: b\.jpg"):
        run(tool, *words)
    coco(tmp_path, images=[{"id": 1, "file_name": "../a.jpg", "height": 10, "width": 12}])
    with pytest.raises(DatasetError, match="found an image outside its folder"):
        run(tool, *words[:-2])
    coco(tmp_path, images=[], annotations=[])
    with pytest.raises(DatasetError, match=r"coco\.json: found no image"):
        run(tool, *words[:-2])
    coco(tmp_path)
    Image.new("RGB", (10, 12)).save(tmp_path / "images/s/a.jpg")
    with pytest.raises(DatasetError, match="image has 10x12 pixels, its annotations are for 12x10"):
        run(tool, *words)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 10)).save(tmp_path / "images/s/a.jpg", exif=exif)
    with pytest.raises(DatasetError, match="are for 12x10; .* as it is stored, which its EXIF"):
        run(tool, *words)
    assert not (tmp_path / "o").exists()
    (tmp_path / "c.csv").write_text("name,id\ndog,7\n")
    run(tool, *words[:-2], "--classes", tmp_path / "c.csv", "--unknown", "ignore")
    assert np.unique(read_label(tmp_path / "o/s/a.png")).tolist() == [7, 255]
    index = json.loads((tmp_path / "o/index.json").read_text())
    assert index["unknown"] == {"Cat": 1}


def test_an_export_without_annotations(tool: ModuleType, tmp_path: Path) -> None:
    """Of single images that is no mistake, and where all of it is background neither."""
    path = coco(tmp_path, annotations=[])
    words = [path, "--from", "coco", "--output", tmp_path / "o"]
    with pytest.raises(DatasetError) as caught:
        run(tool, *words)
    assert str(caught.value) == (
        f"{path}: found no pixel with a class in 2 images, expected some; annotate some, or export "
        "them again with their annotations"
    )
    assert not list((tmp_path / "o").glob("*.json"))
    run(tool, *words, "--unlabelled", "background", "--overwrite")
    assert (read_label(tmp_path / "o/b.png") == 0).all()
    run(tool, coco(tmp_path), *words[1:], "--overwrite", "--unlabelled", "background")
    assert np.unique(read_label(tmp_path / "o/s/a.png")).tolist() == [0, 1, 2, 255]


def _coco(folder: Path, **image: object) -> Path:
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 12, "height": 9, **image}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
    }
    path = folder / "c.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "no file can have"),
        (".", "no file can have"),
        ("a\0.jpg", "no file can have .*null (byte|character)"),
        ("\ud800.jpg", "no file can have"),
        ("/etc/a.jpg", "found an image outside its folder"),
        ("x/../../a.jpg", "found an image outside its folder"),
    ],
)
@pytest.mark.parametrize("with_images", [True, False])
def test_names_that_no_image_has(
    tool: ModuleType, tmp_path: Path, file: str, message: str, with_images: bool
) -> None:
    words = [_coco(tmp_path, file_name=file), "--from", "coco", "--output", tmp_path / "o"]
    with pytest.raises(DatasetError, match=message):
        run(tool, *words, *["--images", tmp_path] * with_images)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "change",
    [{"id": 1, "file_name": "b.jpg"}, {"id": 2}, {"id": 2, "file_name": "./a.jpg"}],
)
def test_images_that_occur_twice(
    tool: ModuleType, tmp_path: Path, change: dict[str, object]
) -> None:
    path = _coco(tmp_path)
    tree = json.loads(path.read_text())
    tree["images"].append({**tree["images"][0], **change})
    path.write_text(json.dumps(tree))
    with pytest.raises(
        DatasetError,
        match=r"c\.json.*: (found annotations of the image a\.jpg twice.*alone|id 1 occurs twice)",
    ):
        run(tool, path, "--from", "coco", "--output", tmp_path / "o")


def test_lists_of_tools_that_are_no_class_lists(tool: ModuleType, tmp_path: Path) -> None:
    path = _coco(tmp_path)
    for categories, message in (
        ([], "the class list is empty; .* --classes"),
        ([{"id": 1, "name": "cat"}, {"id": 2, "name": "Cat"}], "'cat' = 'Cat'; .* --classes"),
        ([{"id": 1, "name": " "}], "name of the class with id 0 is empty"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), "categories": categories}))
        with pytest.raises(VocabularyError, match=rf"^{re.escape(str(path))}: .*{message}"):
            run(tool, path, "--from", "coco", "--output", tmp_path / "o")


def test_annotations_are_not_converted_into_what_is_read(tool: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "yolo" / "data.yaml"
    data.parent.mkdir()
    data.write_text("names: [cat]")
    Image.new("RGB", (4, 3)).save(data.parent / "a.png")
    for source, output in (
        (data, data.parent / "png"),
        (data.parent, data.parent),
        (data.parent, data.parent / "x" / "y"),
    ):
        with pytest.raises(ConfigError, match="which is read, expected a folder beside it"):
            run(tool, source, "--from", "yolo-seg", "--output", output)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "classes.txt").write_text("cat")
    words = [tmp_path / "texts", "--from", "yolo-seg", "--images", data.parent, "--output"]
    with pytest.raises(ConfigError, match="which is read, expected a folder beside it"):
        run(tool, *words, data.parent / "png")
    (tmp_path / "texts" / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9")
    run(tool, *words, tmp_path / "o")
    assert list(content(tmp_path / "o")) == ["a.png", "index.json", "vocabulary.json"]
