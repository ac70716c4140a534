"""Pairs by suffixes and extensions: found, or refused with a line that pairs them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from helpers.toy_dataset import forget, toy_config, vocabulary_tree, write_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.config.loading import load_config
from tagclip.data.datasets.register import register_datasets
from tagclip.errors import ConfigError, DatasetError

IMAGE, LABEL = np.full((4, 4, 3), 7, np.uint8), np.zeros((4, 4), np.uint8)


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    forget(*(set(DatasetCatalog.list()) - before))


def _write(path: Path, pixels: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path)


def _write_pairs(
    images: list[Path], labels: list[Path], label: np.ndarray = LABEL
) -> dict[str, str]:
    """Label file of each image."""
    return {_write(i, IMAGE): _write(j, label) for i, j in zip(images, labels, strict=True)}


def _entry(root: Path, images: str = "images", labels: str = "labels", **more: str) -> dict:
    vocabulary = write_json(root / "v.json", vocabulary_tree(["cat", "dog"]))
    folders = {"images": str(root / images), "labels": str(root / labels)}
    return {"name": "mine", "vocabulary": str(vocabulary), **folders, **more}


def _config(entry: dict[str, Any], policy: str = "raise") -> CfgNode:
    return toy_config(
        "DATASETS.FOLDER_DATASETS", [entry],
        "DATASETS.TRAIN", (entry["name"],),
        "DATASETS.ON_BAD_SAMPLE", policy,
    )  # fmt: skip


def _pairs(entry: dict[str, Any], policy: str = "raise") -> dict[str, str]:
    forget(entry["name"])
    register_datasets(_config(entry, policy))
    samples = DatasetCatalog.get(entry["name"])
    assert len({sample["image_id"] for sample in samples}) == len(samples)
    return {sample["file_name"]: sample["sem_seg_file_name"] for sample in samples}


def _line(entry: dict[str, Any], policy: str = "raise") -> dict[str, str]:
    """What the error says to write."""
    with pytest.raises(DatasetError) as caught:
        _pairs(entry, policy)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("dataset mine: ")
    assert ": write " in message, message
    return yaml.safe_load(f"{{{message.split(': write ')[1]}}}")


EXTENSIONS = ["png", "PNG", "tif", "tiff", "bmp", "Tif"]
IMAGE_EXTENSIONS = [*EXTENSIONS, "jpg", "JPG", "jpeg", "webp"]
suffixes = st.one_of(
    st.just(""),
    st.sampled_from(["_image", "_annotation", "_L", "-mask", ".gt", " label", "_10", "_labelIds"]),
    # The names end with digits.
    st.text("aklmxz059_-.# {,é", min_size=1, max_size=6).filter(lambda s: not s[0].isdigit()),
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    names = [
        f"{draw(st.sampled_from(['', 'f_', 'x']))}{n:03d}"
        for n in range(4, 4 + draw(st.integers(3, 9)))
    ]
    folders = draw(st.lists(st.sampled_from(["", "a/", "b/c/"]), min_size=1, max_size=2))
    return {
        "names": [folders[n % len(folders)] + name for n, name in enumerate(names)],
        "suffixes": (draw(suffixes), draw(suffixes)),
        "extensions": (draw(st.sampled_from(IMAGE_EXTENSIONS)), draw(st.sampled_from(EXTENSIONS))),
        "one_folder": draw(st.booleans()),
    }


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees())
def test_the_line_that_is_printed_pairs_the_files(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kinds = ("both", "both") if tree["one_folder"] else ("images", "labels")
        images, labels = (
            [root / kind / f"{name}{suffix}.{extension}" for name in tree["names"]]
            for kind, suffix, extension in zip(
                kinds, tree["suffixes"], tree["extensions"], strict=True
            )
        )
        if {str(path).lower() for path in images} & {str(path).lower() for path in labels}:
            return
        expected = _write_pairs(images, labels)
        entry = _entry(root, *kinds)
        try:
            found = _pairs(entry)
        except DatasetError:
            found = _pairs(entry | _line(entry))
        assert found == expected


def test_suffixes_of_known_data_sets(tmp_path: Path) -> None:
    """CamVid; Cityscapes, with four kinds of files for each label; KITTI 2015; one folder."""
    cities = [f"aachen/aachen_0000{n:02d}_000019" for n in range(3)]
    cities += [f"zurich/zurich_00000{n}_000019" for n in range(3)]
    kinds = ("color", "instanceIds", "labelIds", "labelTrainIds")
    left, fine = (tmp_path / "cityscapes" / kind / "train" for kind in ("leftImg8bit", "gtFine"))
    for name in cities:
        _write(left / f"{name}_leftImg8bit.png", IMAGE)
        for kind in kinds:
            _write(fine / f"{name}_gtFine_{kind}.png", IMAGE if kind == "color" else LABEL)
        (fine / f"{name}_gtFine_polygons.json").touch()
    entry = _entry(tmp_path, images=str(left), labels=str(fine))
    line = _line(entry)
    assert line == {"image_suffix": "_leftImg8bit", "label_suffix": "_gtFine_labelIds"}
    with pytest.raises(DatasetError, match="there are labels with _gtFine_color, _gtFine_inst"):
        _pairs(entry)
    expected = {
        str(left / f"{n}_leftImg8bit.png"): str(fine / f"{n}_gtFine_labelIds.png") for n in cities
    }
    assert _pairs(entry | line) == expected
    # A line for one of the others does as well.
    other = line | {"label_suffix": "_gtFine_labelTrainIds"}
    assert set(_pairs(entry | other).values()) == {
        path.replace("labelIds", "labelTrainIds") for path in expected.values()
    }

    frames = [f"0001TP_00{n}" for n in range(6690, 6990, 30)]
    expected = _write_pairs(
        [tmp_path / "camvid" / "images" / f"{n}.png" for n in frames],
        [tmp_path / "camvid" / "labels" / f"{n}_L.png" for n in frames],
    )
    entry = _entry(tmp_path, "camvid/images", "camvid/labels")
    assert _line(entry) == _line(entry, "skip") == {"label_suffix": "_L"}
    assert _pairs(entry | {"label_suffix": "_L"}) == expected

    # Two images of each scene, of which the first has a label.
    scenes = [f"{n:06d}" for n in range(5)]
    expected = _write_pairs(
        [tmp_path / "kitti" / "image_2" / f"{n}_10.png" for n in scenes],
        [tmp_path / "kitti" / "semantic" / f"{n}_10.png" for n in scenes],
    )
    for name in scenes:
        _write(tmp_path / "kitti" / "image_2" / f"{name}_11.png", IMAGE)
    entry = _entry(tmp_path, "kitti/image_2", "kitti/semantic")
    assert _pairs(entry, "skip") == expected
    assert _pairs(entry | _line(entry)) == expected

    names = [f"{n:03d}" for n in range(1, 12)]
    expected = _write_pairs(
        [tmp_path / "one" / f"{n}_image.png" for n in names],
        [tmp_path / "one" / f"{n}_annotation.png" for n in names],
    )
    entry = _entry(tmp_path, "one", "one")
    assert _line(entry) == {"image_suffix": "_image", "label_suffix": "_annotation"}
    assert _pairs(entry | _line(entry)) == expected


@pytest.mark.parametrize("more", [{"label_suffix": "_mask"}, {"image_suffix": ".webp"}])
def test_a_wrong_suffix_is_mended_by_the_line(more: dict[str, str], tmp_path: Path) -> None:
    names = [f"{n}" for n in range(8, 12)]
    expected = _write_pairs(
        [tmp_path / "images" / f"{n}.jpg" for n in names],
        [tmp_path / "labels" / f"{n}_lab.bmp" for n in names],
    )
    entry = _entry(tmp_path, **more)
    line = _line(entry)
    assert _pairs(entry | line) == expected


@pytest.mark.parametrize("extension", ["PNG", "tif", "TIFF", "Bmp", "gif"])
def test_label_files_of_any_kind_that_keeps_values(extension: str, tmp_path: Path) -> None:
    names = ("a", "deep/er/b")
    expected = _write_pairs(
        [tmp_path / "images" / f"{n}.Jpeg" for n in names],
        [tmp_path / "labels" / f"{n}.{extension}" for n in names],
    )
    assert _pairs(_entry(tmp_path)) == expected


def test_label_files_that_are_no_such_kind_are_named(tmp_path: Path) -> None:
    _write(tmp_path / "images" / "a.jpg", IMAGE)
    _write(tmp_path / "labels" / "a.webp", LABEL)
    with pytest.raises(DatasetError, match=r"labels, found .*a\.webp: save its kind as one of"):
        _pairs(_entry(tmp_path))


def test_jpg_labels_count_where_nothing_else_does(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write(tmp_path / "images" / f"{name}.jpg", IMAGE)
        _write(tmp_path / "labels" / f"{name}.jpg", LABEL)
    _write(tmp_path / "labels" / "b.png", LABEL)
    labels = sorted(Path(label).name for label in _pairs(_entry(tmp_path)).values())
    assert labels == ["a.jpg", "b.png"]


def test_two_files_of_one_name_are_refused_with_the_extension_that_tells_them_apart(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        _write(tmp_path / "images" / f"{name}.tif", IMAGE)
        _write(tmp_path / "images" / f"{name}.png", IMAGE)
        _write(tmp_path / "labels" / f"{name}.png", LABEL)
    _write(tmp_path / "labels" / "b.tif", LABEL)
    entry = _entry(tmp_path)
    for key, lines in (
        ("image_suffix", ["image_suffix: .png", "image_suffix: .tif"]),
        ("label_suffix", ["label_suffix: .png"]),
    ):
        with pytest.raises(DatasetError, match="share the name '[ab]'; move one of them") as caught:
            _pairs(entry)
        if key == "image_suffix":
            # The labels are not told apart yet.
            assert str(caught.value).endswith("to another folder")
            entry |= {key: ".tif"}
        else:
            assert str(caught.value).endswith(f"or write {' or '.join(lines)}")
            entry |= yaml.safe_load(lines[0])
    assert [Path(p).suffix for pair in _pairs(entry).items() for p in pair] == [".tif", ".png"] * 2
    del entry["image_suffix"]
    with pytest.raises(DatasetError, match="or write image_suffix: .png or image_suffix: .tif$"):
        _pairs(entry)


def test_what_is_no_regular_suffix_is_not_called_one(tmp_path: Path) -> None:
    for n in range(20):
        _write(tmp_path / "images" / f"{n}_10.png", IMAGE)
        _write(tmp_path / "labels" / f"{n}_10.png", LABEL)
    _write(tmp_path / "images" / "one_more.png", IMAGE)
    # That a suffix leaves the one image out is no reason to propose it.
    with pytest.raises(DatasetError, match="1 images without label.* such as one_more; add what"):
        _pairs(_entry(tmp_path))
    for n in range(20):
        _write(tmp_path / "other" / f"{'ab'[n % 2]}{n}{'xyzuvw'[n % 6]}.png", LABEL)
    with pytest.raises(DatasetError, match="21 images without label") as caught:
        _pairs(_entry(tmp_path, labels="other"))
    message = str(caught.value)
    assert "_suffix: " not in message and "in a list, pairs: FILE; or add" in message


def test_folders_of_images_and_labels_side_by_side(tmp_path: Path) -> None:
    """LoveDA: the parts of a data set, each with two folders, are entries of their own."""
    expected = {}
    for part in ("Urban", "Rural"):
        for n in range(3):
            image = _write(tmp_path / "Train" / part / "images_png" / f"{n}.png", IMAGE)
            expected[image] = _write(tmp_path / "Train" / part / "masks_png" / f"{n}.png", LABEL)
    with pytest.raises(DatasetError, match="name the folder of images and that of labels, or"):
        _pairs(_entry(tmp_path, "Train", "Train"))
    found = {}
    for part in ("Urban", "Rural"):
        found |= _pairs(_entry(tmp_path, f"Train/{part}/images_png", f"Train/{part}/masks_png"))
    lines = [f"{i}\t{j}".replace(str(tmp_path), "") for i, j in expected.items()]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    listed = _pairs(_entry(tmp_path, "Train", "Train", pairs=str(tmp_path / "pairs.txt")))
    assert found == listed == expected


def test_suffixes_are_texts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_suffix is 10, expected a text; put it in quotes"):
        register_datasets(_config(_entry(tmp_path, label_suffix=10)))
    with pytest.raises(ConfigError, match="'label_sufix'; did you mean label_suffix"):
        register_datasets(_config(_entry(tmp_path, label_sufix="10")))


def test_the_entries_of_the_documentation(repository: Path, tmp_path: Path) -> None:
    """docs/label_files.md: its yaml registers folders, and its error is the one that is raised."""
    text = (repository / "docs" / "label_files.md").read_text()
    section = text[text.index("## Files and their names") : text.index("## Class lists without")]
    blocks = re.findall(r"^```yaml\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    (tmp_path / "mine.yaml").write_text(blocks[0] + blocks[1])
    for name in ("mine", "city"):
        write_json(tmp_path / f"{name}.json", vocabulary_tree(["cat"]))
    for subset in ("train", "val"):
        _write_pairs(
            [tmp_path / "images" / subset / "a.jpg"], [tmp_path / "labels" / subset / "a.png"]
        )
    left, fine = tmp_path / "leftImg8bit" / "train", tmp_path / "gtFine" / "train"
    for n in range(6):
        name = f"aachen/aachen_00000{n}_000019"
        _write(left / f"{name}_leftImg8bit.png", IMAGE)
        for kind in ("color", "instanceIds", "labelIds", "labelTrainIds"):
            _write(fine / f"{name}_gtFine_{kind}.png", LABEL)
    cfg = load_config(tmp_path / "mine.yaml")
    register_datasets(cfg)
    assert [len(DatasetCatalog.get(name)) for name in ("mine_train", "mine_val", "city")] == [
        1,
        1,
        6,
    ]
    entry = next(dict(e) for e in cfg.DATASETS.FOLDER_DATASETS if e["name"] == "city")
    line = {key: entry.pop(key) for key in ("image_suffix", "label_suffix")}
    assert _line({**entry, "name": "mine"}) == line
    with pytest.raises(DatasetError) as caught:
        _pairs(entry)
    (documented,) = re.findall(r"^DatasetError: (.*)$", section, re.MULTILINE)
    assert documented.split("; ")[1] == str(caught.value).split("; ")[1]


@pytest.mark.parametrize("root", [".", "./", "data", "./data/", "data/../data", "link", "/"])
def test_names_begin_below_the_folder_however_it_is_written(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    folder = tmp_path if root in (".", "./") else tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    root = str(folder) + "//" if root == "/" else root
    _write_pairs([folder / "i" / "a.jpg"], [folder / "l" / "a.png"])
    _write(folder / "i" / "sub" / "b.jpg", IMAGE)
    _write(folder / "l" / "sub" / "b.png", LABEL)
    entry = _entry(tmp_path) | {"images": f"{root}/i", "labels": f"{root}/l"}
    register_datasets(_config(entry))
    assert [sample["image_id"] for sample in DatasetCatalog.get("mine")] == ["a", "sub/b"]
    entry |= {"images": root, "labels": root, "name": "one"}
    register_datasets(_config(entry))
    with pytest.raises(DatasetError, match="2 images without label .* such as i/a, i/sub/b"):
        DatasetCatalog.get("one")
