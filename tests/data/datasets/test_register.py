"""Registration: lazy, idempotent, and clear about what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.toy_dataset import forget, vocabulary_tree, write_json
from PIL import Image

from tagclip.data import register_folder_dataset, register_zero_shot_sem_seg
from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    forget(*(set(DatasetCatalog.list()) - before))


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _register(folder: Path, name: str = "toy", **options: str) -> None:
    register_zero_shot_sem_seg(
        name, folder / "images", folder / "labels", folder / "toy.json", **options
    )


def _listing_error(name: str = "toy") -> str:
    with pytest.raises(DatasetError) as caught:
        DatasetCatalog.get(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_registration_and_metadata_names_need_no_files(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    _register(missing)
    metadata = MetadataCatalog.get("toy")
    assert metadata.evaluator_type == "zero_shot_sem_seg"
    assert metadata.vocabulary == str(missing / "toy.json")
    assert metadata.image_root == str(missing / "images")
    assert metadata.sem_seg_root == str(missing / "labels")
    with pytest.raises(VocabularyError, match=r"toy\.json: no such vocabulary json"):
        _ = metadata.stuff_classes
    with pytest.raises(AttributeError, match="thing_classes"):
        _ = metadata.thing_classes


def test_class_metadata_comes_from_the_json(tmp_path: Path) -> None:
    _register(tmp_path)
    write_json(tmp_path / "toy.json", vocabulary_tree(["cat", "dog"], ignore_label=254))
    metadata = MetadataCatalog.get("toy")
    assert metadata.stuff_classes == ["cat", "dog"]
    assert metadata.ignore_label == 254
    assert np.array(metadata.stuff_colors).shape == (2, 3)
    assert Vocabulary.from_metadata("toy").names == ["cat", "dog"]


def test_pairs_are_listed_in_order(tmp_path: Path) -> None:
    _register(tmp_path, label_ext=".PNG")
    for stem in ("b", "a", "sub/c", "a.2"):
        _touch(tmp_path / "images" / f"{stem}.JPG", tmp_path / "labels" / f"{stem}.png")
    _touch(tmp_path / "images" / "readme.txt", tmp_path / "labels" / "a.json")
    assert DatasetCatalog.get("toy") == [
        {
            "file_name": str(tmp_path / "images" / f"{stem}.JPG"),
            "sem_seg_file_name": str(tmp_path / "labels" / f"{stem}.png"),
            "image_id": stem,
        }
        for stem in ("a", "a.2", "b", "sub/c")
    ]


def test_folder_dataset_takes_usual_image_types(tmp_path: Path) -> None:
    register_folder_dataset("mine", tmp_path / "i", tmp_path / "l", tmp_path / "mine.json")
    names = ["a.jpg", "b.jpeg", "c.png", "d.PNG", "e.webp", "f.bmp", "g.tif", "h.tiff"]
    for name in names:
        _touch(tmp_path / "i" / name, tmp_path / "l" / f"{name[0]}.png")
    images = [os.path.basename(sample["file_name"]) for sample in DatasetCatalog.get("mine")]
    assert images == names
    _touch(tmp_path / "i" / "a.png")
    message = _listing_error("mine")
    assert "a.jpg" in message and "a.png" in message and "share the name 'a'" in message
    assert message.endswith("move one of them to another folder")
    # Doing it ends the trouble.
    (tmp_path / "i" / "a.png").rename(tmp_path / "a.png")
    assert len(DatasetCatalog.get("mine")) == len(names)


@pytest.mark.parametrize(
    ("images", "labels"), [("both", "both"), ("both", "both/labels"), ("both/images", "both")]
)
def test_images_and_labels_in_one_folder(images: str, labels: str, tmp_path: Path) -> None:
    """No file is taken for what it is not, and nothing has to be removed."""
    register_folder_dataset("mine", tmp_path / images, tmp_path / labels, tmp_path / "mine.json")
    for stem in ("a", "sub/b"):
        _touch(tmp_path / images / f"{stem}.jpg", tmp_path / labels / f"{stem}.png")
    assert [sample["image_id"] for sample in DatasetCatalog.get("mine")] == ["a", "sub/b"]
    assert all(sample["file_name"].endswith("jpg") for sample in DatasetCatalog.get("mine"))


def test_images_of_a_type_that_is_not_read(tmp_path: Path) -> None:
    _register(tmp_path, image_ext=("jpg", "png"))
    for name in ("a.jpg", "b.gif"):
        _touch(tmp_path / "images" / name, tmp_path / "labels" / f"{name[0]}.png")
    message = _listing_error()
    found = f"{tmp_path / 'images' / 'b.gif'} is none of *.jpg, *.png: save it as one; "
    assert f"1 labels without image in {tmp_path / 'images'}, such as b; {found}add" in message
    assert "go on without them: DATASETS.ON_BAD_SAMPLE skip" in message and "remove" not in message
    _touch(tmp_path / "images" / "b.png")
    assert len(DatasetCatalog.get("toy")) == 2


@pytest.mark.parametrize("variable", [None, "/data"])
def test_missing_folder_names_path_variable_and_command(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    if variable:
        monkeypatch.setenv("DETECTRON2_DATASETS", variable)
    _register(tmp_path, prepare_command="python datasets/prepare_toy.py")
    message = _listing_error()
    assert f"no image folder {tmp_path / 'images'}" in message
    expected = "is '/data'" if variable else "is not set"
    assert f"DETECTRON2_DATASETS {expected}" in message
    assert message.endswith("run: python datasets/prepare_toy.py")
    for name, folder, variable in (
        ("absolute", tmp_path, False), ("relative", Path("gone"), True),
    ):  # fmt: skip
        _register(folder, name)
        assert ("DETECTRON2_DATASETS" in _listing_error(name)) == variable
        assert _listing_error(name).endswith("; check the path")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert _listing_error("absolute").endswith(f"is {str(tmp_path)!r}); check the path")
    _touch(tmp_path / "images" / "a.jpg")
    assert f"no label folder {tmp_path / 'labels'}" in _listing_error()
    _touch(tmp_path / "labels" / "a.bmp")
    assert f"no *.png label in {tmp_path / 'labels'}" in _listing_error()


def test_lonely_files_are_counted_with_five_examples(tmp_path: Path) -> None:
    _register(tmp_path)
    _touch(tmp_path / "images" / "both.jpg", tmp_path / "labels" / "both.png")
    for index in range(7):
        _touch(tmp_path / "images" / f"lonely{index}.jpg")
    message = _listing_error()
    assert "7 images without label" in message
    assert "such as lonely0, lonely1, lonely2, lonely3, lonely4;" in message
    for index in range(7):
        _touch(tmp_path / "labels" / f"lonely{index}.png")
    _touch(tmp_path / "labels" / "only.png")
    assert "1 labels without image" in _listing_error()


def test_results_among_the_images_are_to_be_moved(tmp_path: Path) -> None:
    """As of commands that run in a folder of photos and masks."""
    _touch(tmp_path / "a.png", tmp_path / "a_mask.png")
    path = write_json(tmp_path / "toy.json", vocabulary_tree(["cat"]))
    register_folder_dataset("toy", tmp_path, tmp_path, path, label_suffix="_mask")
    assert len(DatasetCatalog.get("toy")) == 1
    results = tmp_path / "output" / "predictions"
    _touch(results / "a.png")
    message = _listing_error()
    assert "such as output/predictions/a; what is none of the dataset, such as results " in message
    assert "name another OUTPUT_DIR or --output; " in message
    results.parent.rename(tmp_path.with_name("moved"))
    assert len(DatasetCatalog.get("toy")) == 1


def test_lonely_names_that_are_no_files_are_called_so(tmp_path: Path) -> None:
    _touch(*(tmp_path / kind / "a.png" for kind in ("images", "labels")))
    for kind in ("images", "labels"):
        folder = tmp_path / kind
        (folder / "b.png").symlink_to("gone.png")
        os.mkfifo(folder / "c.png")
        _register(tmp_path, kind, image_ext="png")
        message = _listing_error(kind)
        assert f"{folder / 'b.png'} is a broken link or no file, as are 1 more of the" in message
        (folder / "b.png").unlink()
        assert f"{folder / 'c.png'} is a broken link or no file; mend" in _listing_error(kind)
        (folder / "c.png").unlink()
        assert len(DatasetCatalog.get(kind)) == 1


def test_home_and_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "here")
    register_folder_dataset("mine", "~/$PLACE/i", "~/l", "~/mine.json", "$HOME/${PLACE}.txt")
    _touch(tmp_path / "here" / "i" / "a.jpg", tmp_path / "here" / "i" / "b.jpg")
    _touch(tmp_path / "l" / "a.png")
    write_json(tmp_path / "mine.json", vocabulary_tree(["cat"]))
    (tmp_path / "here.txt").write_text("a\n")
    (sample,) = DatasetCatalog.get("mine")
    assert sample["file_name"] == str(tmp_path / "here" / "i" / "a.jpg")
    assert Vocabulary.from_metadata("mine").names == ["cat"]
    assert Vocabulary.from_json("~/mine.json").names == ["cat"]


def test_registering_twice(tmp_path: Path) -> None:
    _register(tmp_path)
    _register(tmp_path)
    with pytest.raises(DatasetError, match="'toy' is taken by another registration"):
        _register(tmp_path / "other")
    with pytest.raises(DatasetError, match="taken"):
        _register(tmp_path, image_ext="jpeg")
    with pytest.raises(DatasetError, match="taken"):
        register_zero_shot_sem_seg(
            "toy", tmp_path / "images", tmp_path / "labels", tmp_path / "other.json"
        )
    with pytest.raises(DatasetError, match="taken"):
        register_folder_dataset("toy", tmp_path / "images", tmp_path / "labels", "toy.json")


def test_a_name_that_is_taken_says_what_differs(tmp_path: Path) -> None:
    """Old and new value of that alone."""
    same = {"name": "mine", "images": "/i", "labels": "/l", "vocabulary": "/v.json"}
    register_folder_dataset(**same)
    others = {
        "image_list": ({"image_list": "/a.txt"}, "image_list /a.txt, expected none"),
        "labels": ({"labels": "/m"}, "labels /m, expected /l"),
        "both": (
            {"images": "/j", "vocabulary": "/w.json"},
            "images /j, expected /i; class list /w.json, expected /v.json",
        ),
    }
    # A path may be written in several ways.
    register_folder_dataset(**same | {"images": "//i", "labels": "/x/../l"})
    taken = "dataset name {!r} is taken by another registration: found {} as there; choose another "
    for change, text in others.values():
        with pytest.raises(DatasetError) as caught:
            register_folder_dataset(**same | change)
        assert str(caught.value) == taken.format("mine", text) + "name for one of them"
    DatasetCatalog.register("theirs", list)
    text = "files of two folders, expected those that other code lists"
    with pytest.raises(DatasetError) as caught:
        register_folder_dataset(**same | {"name": "theirs"})
    assert str(caught.value).startswith(taken.format("theirs", text))


@pytest.mark.parametrize(
    ("name", "good"),
    [("city/val", "city_val"), ("/abs/a", "abs_a"), ("..", "my_val"), (".", "my_val"),
     ("", "my_val"), ("../../a", "a"), ("a\0b", "a_b")],
)  # fmt: skip
def test_a_name_that_is_none_of_a_folder_is_refused(name: str, good: str, tmp_path: Path) -> None:
    """Its results would be where no command finds them, or outside OUTPUT_DIR."""
    path = write_json(tmp_path / "toy.json", vocabulary_tree(["cat"]))
    before = set(DatasetCatalog.list())
    for register in (register_zero_shot_sem_seg, register_folder_dataset):
        with pytest.raises(ConfigError, match="found a name that no folder can have") as caught:
            register(name, tmp_path, tmp_path, path)
        assert str(caught.value).endswith(f"call it {good!r}, or otherwise")
    assert set(DatasetCatalog.list()) == before


def test_a_name_of_somebody_else_is_taken(tmp_path: Path) -> None:
    DatasetCatalog.register("toy", list)
    with pytest.raises(DatasetError, match="taken"):
        _register(tmp_path)
    with pytest.raises(DatasetError, match="registered without a vocabulary"):
        Vocabulary.from_metadata("toy")


def test_listing_reads_no_image(tmp_path: Path) -> None:
    """Empty files are listed: a million images need not be opened at the start."""
    _register(tmp_path)
    _touch(tmp_path / "images" / "a.jpg", tmp_path / "labels" / "a.png")
    (sample,) = DatasetCatalog.get("toy")
    with pytest.raises(OSError):
        Image.open(sample["file_name"])
