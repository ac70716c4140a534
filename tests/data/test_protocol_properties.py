"""Random images, splits and vocabularies: a brute-force reference of what may leave the mapper."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import AugInput, AugmentationList
from helpers.toy_dataset import forget, toy_config, write_json, write_sample
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.data import ZeroShotDatasetMapper, dataset_mapper, register_zero_shot_sem_seg
from tagclip.data.image_io import read_image
from tagclip.utils.class_names import name_key

NAME = "random_scene"


@dataclass
class Scene:
    """A vocabulary json, the split and setting of a run, one label and its image.

    Attributes:
        tree: content of the json.
        split: DATASETS.ZERO_SHOT.SPLIT; "" is the json's default.
        setting: inductive or transductive.
        seen: names of the seen classes of that split, in the order of the classes.
        image: (H, W, 3) uint8.
        label: (H, W) uint8 or uint16, raw ids and the ignore label.
    """

    tree: dict[str, Any]
    split: str
    setting: str
    seen: list[str]
    image: np.ndarray
    label: np.ndarray

    @property
    def target(self) -> list[str]:
        """The classes that training labels index."""
        if self.setting == "inductive":
            return self.seen
        return [entry["name"] for entry in self.tree["classes"]]

    @property
    def ignore(self) -> int:
        """What unlabelled pixels become."""
        return 255 if len(self.target) <= 255 else len(self.target)

    def reference(self) -> np.ndarray:
        """The training label, pixel by pixel."""
        names = {entry["id"]: entry["name"] for entry in self.tree["classes"]}
        result = np.empty(self.label.shape, np.uint8 if len(self.target) <= 255 else np.int32)
        for y, x in itertools.product(*map(range, self.label.shape)):
            name = names.get(int(self.label[y, x]))
            is_seen = name is not None and name in self.seen
            result[y, x] = self.target.index(name) if is_seen else self.ignore
        return result


WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    count = draw(st.sampled_from([1, 2, 3, 6, 12, 300]))
    names = [f"class {i}" for i in range(count)]
    if count < 300:
        words = st.lists(WORDS, min_size=count, max_size=count, unique_by=name_key)
        names = draw(words)
    ignore = draw(st.sampled_from([255, 254, 777]))
    # Every second id, so that others mean nothing, in any order.
    ids = draw(st.permutations([i for i in range(2 * count + 6) if i % 2 and i != ignore][:count]))
    tree: dict[str, Any] = {
        "format": 1,
        "name": "random",
        "ignore_label": ignore,
        "classes": [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)],
        "splits": {},
    }
    setting = draw(st.sampled_from(["inductive", "transductive"] if count > 1 else ["inductive"]))
    parts: dict[str, list[str]] = {}
    for split in ("one", "two"):
        fewest_unseen = 1 if setting == "transductive" else 0
        seen_ones = draw(st.integers(1, count - fewest_unseen))
        seen = set(draw(st.permutations(names))[:seen_ones])
        parts[split] = [name for name in names if name in seen]
        lists = {"seen": parts[split], "unseen": [name for name in names if name not in seen]}
        kept = draw(st.sampled_from([("seen",), ("unseen",), ("seen", "unseen")]))
        tree["splits"][split] = {part: lists[part] for part in kept}
    tree["default_split"] = draw(st.sampled_from(["one", "two"]))
    split = draw(st.sampled_from(["", "one", "two"]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    # Blocks, so that a resized label still shows every class.
    block = draw(st.sampled_from([1, 4]))
    label = generator.choice([*ids, ignore], (height, width)).repeat(block, 0).repeat(block, 1)
    return Scene(
        tree,
        split,
        setting,
        parts[split or tree["default_split"]],
        generator.integers(0, 256, (*label.shape, 3)).astype(np.uint8),
        label.astype(np.uint8 if label.max() < 256 else np.uint16),
    )


AUGMENTATIONS = st.fixed_dictionaries(
    {
        "INPUT.RESIZE": st.sampled_from(["cv2", "pil"]),
        "INPUT.SCALE_RANGE": st.sampled_from([[0.5, 2.0], [1.0, 1.0], [2.0, 3.0]]),
        "INPUT.CROP.ENABLED": st.booleans(),
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": st.sampled_from([0.5, 0.75, 1.0]),
        "INPUT.COLOR_AUG_SSD": st.booleans(),
        "INPUT.FORMAT": st.sampled_from(["RGB", "BGR"]),
    }
)


def map_scene(scene: Scene, folder: Path, keys: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """Write, register and map a scene; with seed None without augmentation."""
    sample = write_sample(folder, "a", scene.image, scene.label)
    path = write_json(folder / "vocabulary.json", scene.tree)
    register_zero_shot_sem_seg(NAME, folder / "images", folder / "labels", path, image_ext="png")
    try:
        opts = {
            "DATASETS.TRAIN": (NAME,),
            "DATASETS.ZERO_SHOT.SPLIT": scene.split,
            "DATASETS.ZERO_SHOT.SETTING": scene.setting,
            **keys,
        }
        mapper = ZeroShotDatasetMapper(toy_config(*itertools.chain(*opts.items())))
        (listed,) = DatasetCatalog.get(NAME)
        assert listed == sample
        if seed is None:
            mapper.augmentations = AugmentationList([])
        np.random.seed(seed)
        result = mapper(listed)
        if seed is not None:
            result["expected"] = replay(mapper, scene, sample["file_name"], seed)
        return result
    finally:
        forget(NAME)


def replay(mapper: ZeroShotDatasetMapper, scene: Scene, file_name: str, seed: int) -> torch.Tensor:
    """Augment the reference instead of what the mapper makes of the label file."""
    image = read_image(file_name, mapper.image_format)
    aug_input = AugInput(image, sem_seg=scene.reference())
    np.random.seed(seed)
    mapper.augmentations(aug_input)
    return torch.from_numpy(np.ascontiguousarray(aug_input.sem_seg))


def check_plain(scene: Scene) -> None:
    with TemporaryDirectory() as folder:
        sample = map_scene(scene, Path(folder), {}, None)
    assert {key for key, value in sample.items() if isinstance(value, torch.Tensor)} == {
        "image",
        "sem_seg",
    }
    reference = scene.reference()
    found = sample["sem_seg"].numpy()
    assert found.dtype == reference.dtype
    np.testing.assert_array_equal(found, reference)


@settings(max_examples=60, deadline=None)
@given(scenes())
def test_labels_equal_a_loop_over_pixels(scene: Scene) -> None:
    check_plain(scene)


@settings(max_examples=60, deadline=None)
@given(scenes(), AUGMENTATIONS, st.integers(0, 1000))
def test_no_augmentation_brings_an_unseen_class_back(
    scene: Scene, keys: dict[str, Any], seed: int
) -> None:
    with TemporaryDirectory() as folder:
        sample = map_scene(scene, Path(folder), keys, seed)
    assert torch.equal(sample["sem_seg"], sample["expected"])
    allowed = {scene.target.index(name) for name in scene.seen} | {scene.ignore}
    assert set(sample["sem_seg"].unique().tolist()) <= allowed


@settings(max_examples=40, deadline=None)
@given(scenes(), AUGMENTATIONS, st.integers(0, 1000))
def test_scrambled_unseen_labels_give_the_same_sample(
    scene: Scene, keys: dict[str, Any], seed: int
) -> None:
    with TemporaryDirectory() as folder:
        sample = map_scene(scene, Path(folder), keys, seed)
    unseen = [e["id"] for e in scene.tree["classes"] if e["name"] not in scene.seen]
    hidden_values = np.array([*unseen, scene.tree["ignore_label"]])
    label = scene.label.astype(np.uint16)
    hidden = np.isin(label, hidden_values)
    label[hidden] = np.random.default_rng(seed).choice(hidden_values, hidden.sum())
    scene.label = label
    with TemporaryDirectory() as folder:
        again = map_scene(scene, Path(folder), keys, seed)
    assert torch.equal(sample["image"], again["image"])
    assert torch.equal(sample["sem_seg"], again["sem_seg"])
    assert {key for key in sample if "mask" in key} == set()


def test_a_leak_of_one_class_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: one unseen class in a table is enough."""
    tables = dataset_mapper._training_luts

    def leaking(source: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
        lut, novel = tables(source, target)
        lut[3] = 0
        return lut, novel

    tree = {
        "format": 1,
        "name": "random",
        "classes": [{"id": i, "name": f"c{i}"} for i in (1, 3, 5)],
        "default_split": "one",
        "splits": {"one": {"unseen": ["c3"]}},
    }
    label = np.array([[1, 3], [5, 255]], np.uint8)
    image = np.zeros((2, 2, 3), np.uint8)
    scene = Scene(json.loads(json.dumps(tree)), "", "inductive", ["c1", "c5"], image, label)
    check_plain(scene)
    monkeypatch.setattr(dataset_mapper, "_training_luts", leaking)
    with pytest.raises(AssertionError):
        check_plain(scene)
