"""The benchmarks that `tagclip.register` registers, their class lists, and own data in a config."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.miniature_trees import benchmarks_at, random_label, write_gray, write_jpg, write_list
from helpers.toy_dataset import forget, toy_config, vocabulary_tree, write_json

from tagclip.cli.commands import MODULES
from tagclip.config.loading import load_config
from tagclip.data import Protocol, ZeroShotDatasetMapper
from tagclip.data.datasets.builtin import read_benchmarks, register_benchmarks, vocabulary_json
from tagclip.data.datasets.manifest import LabelManifest
from tagclip.errors import ConfigError, DatasetError
from tagclip.structures.vocabulary import Vocabulary

NAMES = [
    "voc2012_train", "voc2012_val", "coco_stuff_train", "coco_stuff_val",
    "pascal_context59_train", "pascal_context59_val", "pascal_context60_train",
    "pascal_context60_val", "pascal_context459_val", "ade20k150_train", "ade20k150_val",
    "ade20k847_val",
]  # fmt: skip
SIZES = {"voc20": 20, "coco_stuff171": 171, "context59": 59, "context60": 60, "context459": 459,
         "ade150": 150, "ade847": 847}  # fmt: skip
# SPNet's unseen classes of VOC and COCO-Stuff, ZS3Net's of PASCAL Context.
UNSEEN = {
    "voc20": "pottedplant sheep sofa train tvmonitor",
    "coco_stuff171": "cow giraffe suitcase frisbee skateboard carrot scissors cardboard clouds "
    "grass playingfield river road tree wall-concrete",
    "context59": "cow motorbike sofa cat boat fence bird tvmonitor keyboard aeroplane",
    "context60": "cow motorbike sofa cat boat fence bird tvmonitor keyboard aeroplane",
}


def vocabulary(name: str) -> Vocabulary:
    return Vocabulary.from_json(vocabulary_json(name))


def listing_error(name: str) -> str:
    with pytest.raises(DatasetError) as caught:
        DatasetCatalog.get(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    forget(*(set(DatasetCatalog.list()) - before))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root without data, at which the benchmarks are registered."""
    with benchmarks_at(tmp_path / "data"):
        yield tmp_path / "data"


def test_the_variable_that_is_no_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, found in (("s3://bucket/data", "an address"), ("$NOTHING/a", "no environment var")):
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
        with pytest.raises(ConfigError) as caught:
            register_benchmarks()
        assert str(caught.value).startswith(f"DETECTRON2_DATASETS: {value}: found {found}")


def test_all_benchmarks_are_registered_and_nothing_is_read(root: Path) -> None:
    assert list(read_benchmarks()) == NAMES
    assert not root.exists()
    for benchmark in read_benchmarks().values():
        metadata = MetadataCatalog.get(benchmark.name)
        assert metadata.evaluator_type == "zero_shot_sem_seg"
        assert metadata.image_root == str(root / benchmark.images)
        assert len(metadata.stuff_classes) == SIZES[benchmark.vocabulary]
        assert len(metadata.stuff_colors) == SIZES[benchmark.vocabulary]
        message = listing_error(benchmark.name)
        assert f"no image folder {root / benchmark.images}" in message
        assert message.endswith(f"run: tagclip prepare {benchmark.prepare}")
        assert f"prepare {benchmark.prepare}" in MODULES


def test_registering_again_does_nothing_and_elsewhere_is_refused(root: Path) -> None:
    register_benchmarks(root)
    with pytest.raises(DatasetError, match="taken by another registration"):
        register_benchmarks(root / "other")


@pytest.mark.parametrize(("name", "unseen"), UNSEEN.items())
def test_unseen_classes_are_those_of_the_published_splits(name: str, unseen: str) -> None:
    assert set(vocabulary(name).unseen_names) == set(unseen.split())
    assert vocabulary(name).num_seen == SIZES[name] - len(unseen.split())


def test_class_orders() -> None:
    voc, coco = vocabulary("voc20").names, vocabulary("coco_stuff171").names
    assert [voc[i] for i in (0, 10, 14, 15, 19)] == [
        "aeroplane", "diningtable", "person", "pottedplant", "tvmonitor",
    ]  # fmt: skip
    assert [coco[i] for i in (0, 79, 80, 170)] == ["person", "toothbrush", "banner", "wood"]
    assert coco[80:] == sorted(coco[80:])
    context = vocabulary("context59").names
    assert context == sorted(context)
    assert vocabulary("context60").names == ["background", *context]
    assert set(context) < set(vocabulary("context459").names)
    assert vocabulary("ade150").names[7] == "bed"
    assert vocabulary("ade847").names[:2] == ["wall", "building, edifice"]
    for name, size in SIZES.items():
        assert [entry.id for entry in vocabulary(name).classes] == list(range(size))


def test_released_models_read_the_original_spelling() -> None:
    for name in ("voc20", "coco_stuff171", "context59", "context60"):
        assert vocabulary(name).prompts == [(text,) for text in vocabulary(name).names]


def test_readable_class_lists_differ_in_prompts_only() -> None:
    for benchmark in read_benchmarks().values():
        if not benchmark.readable:
            continue
        plain, readable = vocabulary(benchmark.vocabulary), vocabulary(benchmark.readable)
        assert MetadataCatalog.get(benchmark.readable_name).vocabulary.endswith("_readable.json")
        assert readable.names == plain.names and readable.seen == plain.seen
        assert [e.id for e in readable.classes] == [e.id for e in plain.classes]
        np.testing.assert_array_equal(readable.colors, plain.colors)
        assert all(prompt.replace(" ", "").isalpha() for (prompt,) in readable.prompts)
    prompts = dict(zip(plain.names, readable.prompts, strict=True))
    assert prompts["pottedplant"] == ("potted plant",)


def test_voc_has_the_colours_of_its_label_files() -> None:
    colors = vocabulary("voc20").colors.tolist()
    assert colors[:4] == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colors[14:16] == [[192, 128, 128], [0, 64, 0]]
    assert colors[19] == [0, 64, 128]


def _prepared(root: Path, stems: tuple[str, ...] = ("a", "b"), **record: object) -> Path:
    """Two images of voc2012_val with labels, list and record; path of the record."""
    benchmark = read_benchmarks()["voc2012_val"]
    for seed, stem in enumerate(("a", "b", "not_listed")):
        write_jpg(root / benchmark.images / f"{stem}.jpg", seed)
    for seed, stem in enumerate(stems):
        label = random_label([*range(20), 255], seed)
        write_gray(root / benchmark.labels / f"{stem}.png", label)
    write_list(root / benchmark.image_list, ["b", "a"])
    values = {"num_images": 2, "expected_images": 2, "complete": True, **record}
    LabelManifest.of(vocabulary("voc20"), **values).write(root / benchmark.manifest)
    return root / benchmark.manifest


def test_listed_images_only_in_order(root: Path) -> None:
    _prepared(root)
    samples = DatasetCatalog.get("voc2012_val")
    assert [sample["image_id"] for sample in samples] == ["a", "b"]
    assert samples == DatasetCatalog.get("voc2012_readable_val")
    assert samples[0]["sem_seg_file_name"].endswith("annotations_detectron2/val/a.png")


def test_labels_without_a_record_are_refused(root: Path) -> None:
    manifest = _prepared(root)
    manifest.unlink()
    message = listing_error("voc2012_val")
    assert "val.json: no such file, so that nobody has checked" in message
    assert message.endswith("run: tagclip prepare voc")
    manifest.write_text("{")
    assert "not a record of prepared labels" in listing_error("voc2012_val")


@pytest.mark.parametrize(
    ("record", "stems", "expected"),
    [
        ({"complete": False}, ("a", "b"), "the labels are not complete"),
        ({"num_images": 3}, ("a", "b"), "is of 3 images, "),
        ({}, ("a",), "1 images without label in "),
    ],
)
def test_unfinished_labels_are_refused(
    record: dict, stems: tuple[str, ...], expected: str, root: Path
) -> None:
    _prepared(root, stems, **record)
    message = listing_error("voc2012_val")
    assert expected in message and message.endswith("run: tagclip prepare voc")


def test_labels_of_another_class_order_are_refused(root: Path) -> None:
    manifest = _prepared(root)
    tree = json.loads(manifest.read_text())
    tree["ids"]["cat"], tree["ids"]["dog"] = tree["ids"]["dog"], tree["ids"]["cat"]
    manifest.write_text(json.dumps(tree))
    assert "another class order, such as 'cat' as 11, not 7" in listing_error("voc2012_val")
    tree["ids"]["ship"] = tree["ids"].pop("boat")
    manifest.write_text(json.dumps(tree))
    assert "with other classes, such as 'boat', 'ship'" in listing_error("voc2012_val")
    manifest.write_text(json.dumps({**tree, "ignore_label": 254}))
    assert "ignore label 254, not 255" in listing_error("voc2012_val")


def test_partial_data_are_announced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    _prepared(root, expected_images=1449)
    with caplog.at_level(logging.WARNING):
        assert len(DatasetCatalog.get("voc2012_val")) == 2
    assert "prepared from 2 of 1449 images" in caplog.text


def test_a_missing_list_is_refused(root: Path) -> None:
    _prepared(root)
    path = root / read_benchmarks()["voc2012_val"].image_list
    path.write_text("\n")
    assert "names no image" in listing_error("voc2012_val")
    path.unlink()
    assert "no readable list of images" in listing_error("voc2012_val")


def _own_data(folder: Path) -> Path:
    """Two images with labels and a config that describes them; path of the config."""
    write_json(folder / "pets.json", vocabulary_tree(["cat", "dog", "sofa"], ["sofa"]))
    for seed, stem in enumerate(("a", "b")):
        write_jpg(folder / "images" / f"{stem}.jpg", seed)
        write_gray(folder / "labels" / f"{stem}.png", random_label([0, 1, 2, 255], seed))
    write_list(folder / "train.txt", ["b"])
    config = folder / "pets.yaml"
    config.write_text(
        "DATASETS:\n  TRAIN: [pets_train]\n  FOLDER_DATASETS:\n"
        "    - {name: pets_train, images: ./images, labels: ./labels, vocabulary: ./pets.json,\n"
        "       image_list: ./train.txt}\n"
    )
    return config


def test_own_data_in_a_config(tmp_path: Path) -> None:
    cfg = load_config(_own_data(tmp_path))
    assert Protocol(cfg).dataset("pets_train").unseen_names == ["sofa"]
    cfg.merge_from_other_cfg(load_config(_own_data(tmp_path), ["INPUT.CROP.ENABLED", False]))
    mapper = ZeroShotDatasetMapper(cfg, is_train=True)
    (sample,) = DatasetCatalog.get("pets_train")
    assert sample["image_id"] == "b"
    assert set(np.unique(mapper(sample)["sem_seg"])) == {0, 1, 255}
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(cfg.dump())
    assert load_config(dumped).DATASETS.FOLDER_DATASETS == cfg.DATASETS.FOLDER_DATASETS


ENTRY = {"name": "x", "images": "i", "labels": "l", "vocabulary": "v.json"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("x", r"\[0\] is 'x', expected \{name"),
        ({**ENTRY, "label": "l"}, r"\[0\]: unknown key 'label'; did you mean labels"),
        ({**ENTRY, "zzz": "l"}, r"\[0\]: unknown key 'zzz'; known are name, images"),
        ({**ENTRY, "images": 3}, r"\[0\]: images is 3, expected a text"),
        ({"name": "x", "images": "i"}, r"\[0\]: labels, vocabulary is missing"),
    ],
)
def test_mistakes_in_own_data_are_one_line(entry: object, message: str) -> None:
    cfg = toy_config("DATASETS.FOLDER_DATASETS", [entry])
    with pytest.raises(ConfigError, match=message) as error:
        Protocol(cfg).dataset("x")
    assert "\n" not in str(error.value)
