"""Mapper: no unseen id leaves it, labels match their images, nothing is read at test time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import Augmentation, RandomFlip
from helpers.toy_dataset import forget, toy_config, vocabulary_tree, write_json, write_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.data import (
    ZeroShotDatasetMapper,
    build_train_augmentations,
    register_zero_shot_sem_seg,
)
from tagclip.errors import ConfigError, DatasetError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

NAMES = ["cat", "dog", "sky", "tree"]
# Ids with gaps and out of order, so that a raw id is never its index.
VOCABULARY = Vocabulary(
    "gaps",
    tuple(ClassEntry(i, name) for i, name in zip((7, 0, 3, 9), NAMES, strict=True)),
    seen=(True, False, True, False),
    ignore_label=200,
)


@pytest.fixture(autouse=True)
def _clean_catalogs() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    forget(*(set(DatasetCatalog.list()) - before))


def _mapper(
    source: Vocabulary = VOCABULARY,
    target: Vocabulary | None = None,
    augmentations: list[Augmentation] | None = None,
    **options: Any,
) -> ZeroShotDatasetMapper:
    arguments = {
        "is_train": True,
        "augmentations": augmentations or [],
        "image_format": "RGB",
        "source_vocabulary": source,
        "target_vocabulary": target or source.restrict("seen"),
        "novel_masks": False,
        "max_pixels": 10_000,
        **options,
    }
    return ZeroShotDatasetMapper(**arguments)


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _registered(folder: Path, label: np.ndarray, **tree: Any) -> dict[str, str]:
    sample = write_sample(folder, "a", _image(*label.shape), label)
    path = write_json(folder / "toy.json", vocabulary_tree(NAMES, unseen=["sky"], **tree))
    register_zero_shot_sem_seg("toy", folder / "images", folder / "labels", path, image_ext="png")
    return sample


def test_labels_become_indices_of_seen_classes(tmp_path: Path) -> None:
    label = np.array([[7, 0, 3], [9, 200, 7]], dtype=np.uint8)
    image = _image(2, 3)
    sample = _mapper()(write_sample(tmp_path, "a", image, label))
    assert sample.keys() == {"image", "sem_seg", "height", "width", "file_name", "image_id"}
    assert sample["sem_seg"].tolist() == [[0, 255, 1], [255, 255, 0]]
    assert sample["sem_seg"].dtype == torch.uint8
    assert sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), image)
    assert (sample["height"], sample["width"], sample["image_id"]) == (2, 3, "a")


def test_a_full_target_keeps_unseen_pixels_ignored(tmp_path: Path) -> None:
    """Also where unseen classes are in the queried list, only seen classes keep labels."""
    label = np.array([[7, 0, 3, 9, 200]], dtype=np.uint8)
    mapper = _mapper(target=VOCABULARY, novel_masks=True)
    sample = mapper(write_sample(tmp_path, "a", _image(1, 5), label))
    assert sample["sem_seg"].tolist() == [[0, 255, 2, 255, 255]]
    assert sample["novel_mask"].tolist() == [[False, True, False, True, False]]


def test_all_values_of_a_class_and_colours_are_targets(tmp_path: Path) -> None:
    """Values beside the first, further ignored ones, and colours are as the class list says."""
    classes = (
        ClassEntry(0, "cat", color=(9, 9, 9)),
        ClassEntry(1, "dog", color=(200, 0, 0), ids=(1, 255)),
        ClassEntry(2, "sky", color=(0, 0, 200), ids=(2, 7)),
    )
    source = Vocabulary("v", classes, (True, True, False), "s", 254, (3,), ((0, 0, 0),))
    label = np.array([[0, 1, 255, 2, 7, 254, 3]], np.uint8)
    mapper = _mapper(source, source, novel_masks=True)
    sample = mapper(write_sample(tmp_path, "a", _image(1, 7), label))
    assert sample["sem_seg"].tolist() == [[0, 1, 1, 255, 255, 255, 255]]
    assert sample["novel_mask"].tolist() == [[False, False, False, True, True, False, False]]
    rgb = np.array([[(9, 9, 9), (200, 0, 0), (0, 0, 200), (0, 0, 0)]], np.uint8)
    sample = mapper(write_sample(tmp_path, "b", _image(1, 4), rgb))
    assert sample["sem_seg"].tolist() == [[0, 1, 255, 255]]
    assert sample["novel_mask"].tolist() == [[False, False, True, False]]


def test_supervised_keeps_every_class(tmp_path: Path) -> None:
    label = np.array([[7, 0, 3, 9, 200]], dtype=np.uint8)
    target = VOCABULARY.with_seen([True] * 4)
    mapper = _mapper(target=target, novel_masks=True)
    sample = mapper(write_sample(tmp_path, "a", _image(1, 5), label))
    assert sample["sem_seg"].tolist() == [[0, 1, 2, 3, 255]]
    assert not sample["novel_mask"].any()


def test_more_than_255_classes_have_int32_targets(tmp_path: Path) -> None:
    source = Vocabulary.from_names([f"c{i}" for i in range(700)])
    source = source.with_seen([i % 7 != 0 for i in range(700)])
    label = np.array([[1, 255, 699, 0, 700 - 7, 698, 65535, 256]], dtype=np.uint16)
    label = label.repeat(9, 0).repeat(9, 1)
    cfg = toy_config("INPUT.SCALE_RANGE", [0.7, 0.7], "INPUT.CROP.ENABLED", False)
    target = source.restrict("seen")
    for library in ("cv2", "pil"):
        cfg.INPUT.RESIZE = library
        augmentations = build_train_augmentations(cfg, target.ignore_index)
        mapper = _mapper(source, augmentations=augmentations, novel_masks=True)
        sample = mapper(write_sample(tmp_path, "a", _image(*label.shape), label))
        assert sample["sem_seg"].dtype == torch.int32
        expected = {target.names.index(f"c{i}") for i in (1, 255, 699, 698, 256)} | {600}
        assert set(sample["sem_seg"].unique().tolist()) == expected
        assert sample["novel_mask"].any()
        assert (sample["sem_seg"][sample["novel_mask"]] == 600).all()


@st.composite
def _scenes(draw: st.DrawFn) -> tuple[Vocabulary, np.ndarray]:
    count = draw(st.sampled_from([1, 2, 5, 20, 300]))
    ignore = draw(st.sampled_from([255, 1000]))
    # One id in three is skipped; the order is random.
    ids = [i for i in range(2 * count + 2) if i % 3 and i != ignore][:count]
    ids = draw(st.permutations(ids))
    flags = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    flags[draw(st.integers(0, count - 1))] = True
    entries = tuple(ClassEntry(i, f"c{i}") for i in ids)
    vocabulary = Vocabulary("random", entries, tuple(flags), ignore_label=ignore)
    seed = draw(st.integers(0, 2**32 - 1))
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    label = np.random.default_rng(seed).choice([*ids, ignore], (height, width))
    return vocabulary, label.astype(np.uint8 if label.max() < 256 else np.uint16)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_scenes(), st.integers(0, 1000), st.sampled_from(["cv2", "pil"]), st.booleans())
def test_no_unseen_id_leaves(tmp_path: Path, scene, seed: int, library: str, full: bool) -> None:
    vocabulary, label = scene
    target = vocabulary if full else vocabulary.restrict("seen")
    cfg = toy_config("INPUT.RESIZE", library)
    augmentations = build_train_augmentations(cfg, target.ignore_index)
    mapper = _mapper(vocabulary, target, augmentations)
    image = _image(*label.shape)
    np.random.seed(seed)
    sample = mapper(write_sample(tmp_path, "a", image, label))
    present = set(sample["sem_seg"].unique().tolist()) - {target.ignore_index}
    seen = {
        target.names.index(n) for n, flag in zip(target.names, target.seen, strict=True) if flag
    }
    ids = {entry.id: entry.name for entry in vocabulary.classes}
    labelled = {ids[value] for value in np.unique(label).tolist() if value in ids}
    assert present <= seen
    assert {target.names[index] for index in present} <= labelled

    # Scrambling the unseen labels changes nothing at all.
    unseen = [e.id for e, flag in zip(vocabulary.classes, vocabulary.seen, strict=True) if not flag]
    hidden = np.isin(label, [*unseen, vocabulary.ignore_label])
    scrambled = label.astype(np.uint16)
    choices = np.array([*unseen, vocabulary.ignore_label], dtype=np.uint16)
    scrambled[hidden] = np.random.default_rng(seed).choice(choices, int(hidden.sum()))
    np.random.seed(seed)
    again = mapper(write_sample(tmp_path, "a", image, scrambled))
    assert torch.equal(sample["sem_seg"], again["sem_seg"])
    assert torch.equal(sample["image"], again["image"])


def test_novel_mask_moves_with_image_and_label(tmp_path: Path) -> None:
    ids = np.array([7, 0, 3, 9, 200], dtype=np.uint8)
    label = ids[np.random.default_rng(1).integers(0, 5, (12, 12))].repeat(4, 0).repeat(4, 1)
    # The red channel tells which pixels are unseen.
    image = np.zeros((48, 48, 3), dtype=np.uint8)
    image[..., 0] = 255 * np.isin(label, [0, 9])
    cfg = toy_config("INPUT.COLOR_AUG_SSD", False, "INPUT.SCALE_RANGE", [2.0, 2.0])
    mapper = _mapper(augmentations=build_train_augmentations(cfg, 255), novel_masks=True)
    for seed in range(10):
        np.random.seed(seed)
        sample = mapper(write_sample(tmp_path, "a", image, label))
        mask = sample["novel_mask"]
        assert mask.dtype == torch.bool and mask.shape == sample["sem_seg"].shape
        assert (sample["sem_seg"][mask] == 255).all()
        assert (mask == (sample["image"][0] > 127)).float().mean() > 0.85


def test_the_crop_looks_at_seen_labels_only(tmp_path: Path) -> None:
    """An unseen class beside one seen class does not make a crop acceptable."""
    label = np.full((8, 16), 7, dtype=np.uint8)
    label[:, 1::2] = 9
    looked: list[np.ndarray] = []

    class Spy(Augmentation):
        def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Any:
            looked.append(np.unique(sem_seg))
            raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError):
        _mapper(augmentations=[Spy()])(write_sample(tmp_path, "a", _image(8, 16), label))
    np.testing.assert_array_equal(looked[0], [0, 255])


def test_a_crop_of_one_pixel_may_be_mirrored(tmp_path: Path) -> None:
    """numpy calls a mirrored axis of one pixel contiguous, torch does not take it."""
    sample = write_sample(tmp_path, "a", _image(3, 1), np.array([[7], [9], [3]], np.uint8))
    flip = RandomFlip(prob=1.0)
    found = _mapper(augmentations=[flip], novel_masks=True)(sample)
    assert torch.equal(found["image"], torch.from_numpy(_image(3, 1)).permute(2, 0, 1))
    assert found["sem_seg"].shape == found["novel_mask"].shape == (3, 1)


def test_bad_labels_are_named(tmp_path: Path) -> None:
    label = np.array([[7, 0, 5]], dtype=np.uint8)
    sample = write_sample(tmp_path, "a", _image(1, 3), label)
    message = rf"{sample['sem_seg_file_name']}: label 5 at \(2,0\), vocabulary gaps has 0, 3, 7, 9"
    with pytest.raises(DatasetError, match=message):
        _mapper()(sample)
    sample = write_sample(tmp_path, "b", _image(3, 1), label)
    with pytest.raises(DatasetError, match=r"label is 3x1.*its image is 1x3; .* swapped: write"):
        _mapper()(sample)
    del sample["sem_seg_file_name"]
    with pytest.raises(DatasetError, match=r"images/b\.png: no label file is registered"):
        _mapper()(sample)


def test_rotated_image_takes_an_upright_label(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "a", _image(4, 2), np.full((4, 2), 7, dtype=np.uint8))
    sample["file_name"] = str(tmp_path / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_image(2, 4)).save(sample["file_name"], exif=exif)
    mapped = _mapper()(sample)
    assert mapped["image"].shape == (3, 4, 2)
    assert (mapped["height"], mapped["width"]) == (4, 2)


def test_large_images_are_refused(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "a", _image(5, 5), np.full((5, 5), 7, dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"INPUT\.MAX_PIXELS allows 24"):
        _mapper(max_pixels=24)(sample)


def _photo(folder: Path, suffix: str, orientation: int = 1) -> dict[str, str]:
    """Smooth colours, (90, 120) pixels when upright, with a label of four parts."""
    label = np.repeat(np.array([[7, 0], [3, 9]], np.uint8), 45, 0).repeat(60, 1)
    sample = write_sample(folder, "a", _image(90, 120), label)
    size = (120, 90) if orientation == 1 else (90, 120)
    smooth = Image.fromarray(_image(3, 3)).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    sample["file_name"] = str(folder / f"photo.{suffix}")
    smooth.save(sample["file_name"], quality=95, exif=exif)
    return sample


@pytest.mark.parametrize("library", ["cv2", "pil"])
@pytest.mark.parametrize(
    ("suffix", "orientation", "short", "same"),
    [("jpg", 1, 22, False), ("jpg", 6, 45, False), ("jpg", 1, 46, True), ("png", 1, 22, True)],
)
def test_reduced_jpegs_keep_geometry_and_labels(
    suffix: str, orientation: int, short: int, same: bool, library: str, tmp_path: Path
) -> None:
    """Where the resize halves a JPEG at least; the same random numbers decide."""
    sample = _photo(tmp_path, suffix, orientation)
    cfg = toy_config(
        "INPUT.MIN_SIZE_TRAIN", (short,), "INPUT.SCALE_RANGE", [1.0, 1.0], "INPUT.RESIZE", library,
        "INPUT.CROP.SIZE", (20, 20), "INPUT.COLOR_AUG_SSD", False,
    )  # fmt: skip
    found = []
    for reduced in (False, True):
        mapper = _mapper(
            augmentations=build_train_augmentations(cfg, 255),
            novel_masks=True,
            max_pixels=90 * 120,
            reduced_jpeg=reduced,
        )
        np.random.seed(3)
        found.append(mapper(sample))
    whole, small = found
    assert (small["height"], small["width"]) == (90, 120)
    for key in ("sem_seg", "novel_mask"):
        assert torch.equal(small[key], whole[key])
    difference = (small["image"].int() - whole["image"].int()).abs()
    assert difference.float().mean() < 4
    assert torch.equal(small["image"], whole["image"]) == same


def test_training_from_config(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 4, (40, 60), dtype=np.uint8)
    sample = _registered(tmp_path, label)
    cfg = toy_config("DATASETS.TRAIN", ("toy",))
    mapped = ZeroShotDatasetMapper(cfg)(sample)
    assert mapped["sem_seg"].shape == mapped["image"].shape[1:]
    assert set(mapped["sem_seg"].unique().tolist()) == {0, 1, 2, 255}
    assert "novel_mask" not in mapped and "vocabulary" not in mapped
    cfg.DATASETS.ZERO_SHOT.SETTING = "supervised"
    mapped = ZeroShotDatasetMapper(cfg, is_train=True, dataset_name="toy")(sample)
    assert set(mapped["sem_seg"].unique().tolist()) == {0, 1, 2, 3}


def test_novel_masks_need_permission(tmp_path: Path) -> None:
    sample = _registered(tmp_path, np.full((40, 60), 2, dtype=np.uint8))
    cfg = toy_config("DATASETS.TRAIN", ("toy",), "MODEL.TAGCLIP.TRUSTY.TARGET", "novel")
    with pytest.raises(ConfigError, match="ALLOW_NOVEL_MASKS"):
        ZeroShotDatasetMapper(cfg)
    cfg.DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS = True
    mapped = ZeroShotDatasetMapper(cfg)(sample)
    assert mapped["novel_mask"].all() and (mapped["sem_seg"] == 255).all()
    cfg.MODEL.TAGCLIP.TRUSTY.ENABLED = False
    assert "novel_mask" not in ZeroShotDatasetMapper(cfg)(sample)


def test_test_time_reads_no_label(tmp_path: Path) -> None:
    sample = _registered(tmp_path, np.zeros((48, 60), dtype=np.uint8))
    Path(sample["sem_seg_file_name"]).unlink()
    cfg = toy_config("DATASETS.TRAIN", ("toy",))
    mapped = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name="toy")(sample)
    assert mapped.keys() == {"image", "height", "width", "file_name", "image_id", "vocabulary"}
    assert mapped["image"].shape == (3, 32, 40)
    assert (mapped["height"], mapped["width"]) == (48, 60)
    assert mapped["vocabulary"].names == NAMES
    assert mapped["vocabulary"].unseen_names == ["sky"]
    with pytest.raises(ValueError, match="needs dataset_name"):
        ZeroShotDatasetMapper(cfg, is_train=False)


def test_image_format(tmp_path: Path) -> None:
    sample = _registered(tmp_path, np.zeros((32, 32), dtype=np.uint8))
    images = {}
    for image_format in ("RGB", "BGR"):
        cfg = toy_config("DATASETS.TRAIN", ("toy",), "INPUT.FORMAT", image_format)
        mapper = ZeroShotDatasetMapper(cfg, is_train=False, dataset_name="toy")
        images[image_format] = mapper(sample)["image"]
    assert torch.equal(images["RGB"], images["BGR"].flip(0))
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT: found 'L', expected 'RGB' or"):
        ZeroShotDatasetMapper(toy_config("DATASETS.TRAIN", ("toy",), "INPUT.FORMAT", "L"))


_SIDES = st.sampled_from([1, 2, 3, 17, 40])
# From the least that a config may ask for.
_CROPS = st.sampled_from([14, 15, 17, 40])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(_SIDES, _SIDES) | st.sampled_from([(1, 5000), (5000, 1)]),
    crop=st.tuples(_CROPS, _CROPS),
    bounds=st.sampled_from([(14, 14), (14, 0), (32, 128), (32, 0), (512, 2048)]),
    library=st.sampled_from(["cv2", "pil"]),
    flip=st.sampled_from(["horizontal", "vertical", "none"]),
    seed=st.integers(0, 9),
)
def test_any_size_and_any_crop(
    size: tuple[int, int], crop: tuple[int, int], bounds: tuple[int, int], library: str, flip: str,
    seed: int, tmp_path: Path,
) -> None:  # fmt: skip
    """Image, labels and mask stay over each other down to one pixel; red says the raw label."""
    np.random.seed(seed)
    label = np.random.choice(np.array([7, 0, 3, 9, 200], np.uint8), size)
    image = np.full((*size, 3), label[..., None])
    cfg = toy_config(
        "INPUT.MIN_SIZE_TRAIN", (bounds[0],), "INPUT.MAX_SIZE_TRAIN", bounds[1],
        "INPUT.CROP.SIZE", crop, "INPUT.RESIZE", library, "INPUT.RANDOM_FLIP", flip,
        "INPUT.COLOR_AUG_SSD", False, "INPUT.SCALE_RANGE", [1.0, 1.0],
    )  # fmt: skip
    augmentations = build_train_augmentations(cfg, 255)
    # Colours as exact as labels.
    augmentations[0].get_transform = _nearest(augmentations[0].get_transform)
    mapper = _mapper(augmentations=augmentations, novel_masks=True, max_pixels=0)
    sample = mapper(write_sample(tmp_path, "a", image, label))
    height, width = sample["sem_seg"].shape
    assert 1 <= height <= crop[0] and 1 <= width <= crop[1]
    assert sample["image"].shape == (3, height, width)
    red = sample["image"][0].numpy()
    expected = np.full(256, 255)
    expected[[7, 3]] = 0, 1
    np.testing.assert_array_equal(sample["sem_seg"], expected[red])
    np.testing.assert_array_equal(sample["novel_mask"], (red == 0) | (red == 9))


def _nearest(get_transform: Any) -> Any:
    def get(image: np.ndarray) -> Any:
        transform = get_transform(image)
        transform.apply_image = transform.apply_segmentation
        return transform

    return get
