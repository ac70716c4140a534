"""Augmentation: geometry of the released pipeline, the crop's rule, determinism."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest
from detectron2.data.transforms import AugInput, AugmentationList
from helpers.toy_dataset import toy_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagclip.data import build_test_augmentations, build_train_augmentations
from tagclip.data.augmentation import CategoryCrop, RandomResize
from tagclip.data.inference_input import ResizeTransform, fit_size
from tagclip.errors import ConfigError

sides = st.integers(1, 3000)


def _round_half_up(value: Fraction) -> int:
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


@given(sides, sides, st.integers(1, 2000), st.integers(0, 4000))
def test_fit_size_by_exact_fractions(height: int, width: int, short: int, long: int) -> None:
    scale = Fraction(short, min(height, width))
    if long:
        scale = min(scale, Fraction(long, max(height, width)))
    for side, new in zip((height, width), fit_size(height, width, short, long), strict=True):
        exact = side * scale
        # Exactly .5 may round either way in floating point.
        near = {_round_half_up(exact), _round_half_up(exact - Fraction(1, 10**9))}
        assert new in {max(1, size) for size in near}


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        # By hand: (2048, 512) times the factor, cut to integers, bounds the image.
        ((375, 500), 1.0, (512, 683)),
        ((500, 375), 1.0, (683, 512)),
        ((375, 500), 0.7001, (358, 477)),
        ((100, 1000), 2.0, (410, 4096)),
        ((100, 1000), 0.5, (102, 1024)),
        ((1, 5000), 1.0, (1, 2048)),
        ((1, 1), 2.0, (1024, 1024)),
    ],
)
def test_training_resize_by_hand(
    size: tuple[int, int], factor: float, expected: tuple[int, int]
) -> None:
    resize = RandomResize([512], 2048, (factor, factor), "cv2")
    transform = resize.get_transform(np.zeros((*size, 3), dtype=np.uint8))
    assert (transform.new_height, transform.new_width) == expected


def test_training_resize_draws_the_factor_uniformly_from_numpy() -> None:
    np.random.seed(3)
    factors = [0.5 + 1.5 * u for u in np.random.random_sample(20)]
    np.random.seed(3)
    resize = RandomResize([512], 2048, (0.5, 2.0), "cv2")
    for factor in factors:
        transform = resize.get_transform(np.zeros((300, 400, 3), dtype=np.uint8))
        assert transform.new_height == int(512 * factor)


def test_training_resize_chooses_among_several_sides() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    cfg = toy_config("INPUT.MIN_SIZE_TRAIN", (20, 23), "INPUT.SCALE_RANGE", [1.0, 1.0])
    for sampling, expected in (("choice", {20, 23}), ("range", {20, 21, 22, 23})):
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = sampling
        resize = build_train_augmentations(cfg, 255)[0]
        assert {resize.get_transform(image).new_height for _ in range(60)} == expected


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((375, 500), 0, (512, 683)),
        ((600, 1333), 0, (512, 1137)),
        ((100, 3000), 0, (512, 15360)),
        ((100, 3000), 2048, (68, 2048)),
        ((512, 700), 0, (512, 700)),
    ],
)
def test_test_resize_by_hand(
    size: tuple[int, int], longest: int, expected: tuple[int, int]
) -> None:
    cfg = toy_config("INPUT.MIN_SIZE_TEST", 512, "INPUT.MAX_SIZE_TEST", longest)
    (resize,) = build_test_augmentations(cfg)
    transform = resize.get_transform(np.zeros((*size, 3), dtype=np.uint8))
    assert (transform.new_height, transform.new_width) == expected


def test_no_test_resize() -> None:
    assert build_test_augmentations(toy_config("INPUT.MIN_SIZE_TEST", 0)) == []


@pytest.mark.parametrize("library", ["cv2", "pil"])
def test_images_are_resized_by_the_library(library: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    resized = ResizeTransform(37, 53, 20, 71, library).apply_image(image)
    if library == "cv2":
        expected = cv2.resize(image, (71, 20), interpolation=cv2.INTER_LINEAR)
    else:
        expected = np.asarray(Image.fromarray(image).resize((71, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized, expected)


@settings(max_examples=40)
@given(
    st.sampled_from(["cv2", "pil"]),
    st.sampled_from([np.uint8, np.int32]),
    *[st.integers(1, 40)] * 4,
)
def test_labels_are_resized_to_the_nearest(library, dtype, height, width, new_h, new_w) -> None:
    # Values above 2**24 would not survive float32.
    offset = 0 if dtype == np.uint8 else 2**24 + 1
    label = (np.arange(height * width) % 251 + offset).astype(dtype).reshape(height, width)
    transform = ResizeTransform(height, width, new_h, new_w, library)
    resized = transform.apply_segmentation(label)
    assert resized.dtype == dtype and resized.shape == (new_h, new_w)
    # cv2 takes the pixel at the upper left of the sample, PIL the one at its centre.
    shift = Fraction(0) if library == "cv2" else Fraction(1, 2)
    allowed = []
    for old, new in ((height, new_h), (width, new_w)):
        places = [(i + shift) * Fraction(old, new) for i in range(new)]
        # A place on the border of two pixels may go to either.
        allowed.append([{int(p), max(0, -int(-(p - Fraction(1, 10**9)) // 1) - 1)} for p in places])
    for y, x in np.ndindex(new_h, new_w):
        rows = {min(row, height - 1) for row in allowed[0][y]}
        columns = {min(column, width - 1) for column in allowed[1][x]}
        assert resized[y, x] in {label[row, column] for row in rows for column in columns}


def _accepts(crop: np.ndarray, max_area: float) -> bool:
    labelled = [value for value in crop.ravel().tolist() if value != 255]
    counts = [labelled.count(value) for value in set(labelled)]
    return len(counts) >= 2 and max(counts) < max_area * len(labelled)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.75, 1.0]))
def test_crop_obeys_its_rule(seed: int, max_area: float) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1, 2, 255], size=(4, 4), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
    label = blocks.repeat(4, 0).repeat(4, 1)
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    np.random.seed(seed)
    # The rule in plain words: draw; redraw at most ten times while the crop is not acceptable.
    draws = 0
    while True:
        y, x = np.random.randint(16 - 7 + 1), np.random.randint(16 - 5 + 1)
        draws += 1
        if max_area == 1.0 or draws == 11 or _accepts(label[y : y + 7, x : x + 5], max_area):
            break
    np.random.seed(seed)
    transform = CategoryCrop((7, 5), max_area, 255).get_transform(image, label)
    assert (transform.y0, transform.x0, transform.h, transform.w) == (y, x, 7, 5)


def _accepted_by_unique(crop: np.ndarray, max_area: float) -> bool:
    values, counts = np.unique(crop, return_counts=True)
    counts = counts[values != 255]
    return len(counts) > 1 and counts.max() < max_area * counts.sum()


@settings(max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, np.int32]),
    st.sampled_from([0.4, 0.5, 0.75]),
    st.integers(1, 4),
)
def test_labels_of_a_crop_are_counted(seed: int, dtype, max_area: float, classes: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(classes), 254, 255], (20, 30)).astype(dtype)
    label[:, : rng.integers(30)] = rng.choice([0, 255])
    crop = label[3 : rng.integers(4, 20), rng.integers(10) : 29]
    found = CategoryCrop((5, 5), max_area, 255).accepts(crop)
    assert found == _accepted_by_unique(crop, max_area)


def test_counts_beyond_float32_are_exact() -> None:
    # 2^24 + 1 pixels are half of all; the nearest float32 is less.
    label = np.zeros((2, 2**24 + 1), np.uint8)
    label[1] = 1
    label[1, 0] = 2
    assert not CategoryCrop((5, 5), 0.5, 255).accepts(label)


def test_crop_of_an_unlabelled_image() -> None:
    image, label = np.zeros((9, 9, 3), dtype=np.uint8), np.full((9, 9), 255, dtype=np.uint8)
    transform = CategoryCrop((4, 4), 0.75, 255).get_transform(image, label)
    assert transform.apply_segmentation(label).shape == (4, 4)


def test_crop_reaches_every_place() -> None:
    crop = CategoryCrop((2, 3), 1.0, 255)
    image, label = np.zeros((4, 4, 3), dtype=np.uint8), np.zeros((4, 4), dtype=np.uint8)
    transforms = [crop.get_transform(image, label) for _ in range(200)]
    assert {(t.y0, t.x0) for t in transforms} == {(y, x) for y in range(3) for x in range(2)}


@pytest.mark.parametrize("size", [(15, 27), (80, 27), (15, 80), (36, 36)])
def test_sides_shorter_than_the_crop_stay_whole(size: tuple[int, int]) -> None:
    cfg = toy_config("INPUT.CROP.SIZE", (36, 36), "INPUT.SCALE_RANGE", [1.0, 1.0])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (min(size),), 0
    aug_input = AugInput(
        np.zeros((*size, 3), dtype=np.uint8), sem_seg=np.zeros(size, dtype=np.uint8)
    )
    AugmentationList(build_train_augmentations(cfg, 255))(aug_input)
    expected = tuple(min(side, 36) for side in size)
    assert aug_input.image.shape == (*expected, 3)
    assert aug_input.sem_seg.shape == expected


@pytest.mark.parametrize("library", ["cv2", "pil"])
def test_numpy_seed_decides_everything(library: str) -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
    label = rng.integers(0, 3, (50, 60), dtype=np.uint8)
    augmentations = AugmentationList(
        build_train_augmentations(toy_config("INPUT.RESIZE", library), 255)
    )

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        np.random.seed(seed)
        aug_input = AugInput(image.copy(), sem_seg=label.copy())
        augmentations(aug_input)
        return aug_input.image, aug_input.sem_seg

    results = [draw(seed) for seed in (1, 2, 1)]
    np.testing.assert_array_equal(results[0][0], results[2][0])
    np.testing.assert_array_equal(results[0][1], results[2][1])
    assert results[0][0].shape != results[1][0].shape or (results[0][0] != results[1][0]).any()


def test_image_and_label_move_together() -> None:
    """A label that is a function of the colour stays that function of it."""
    label = np.random.default_rng(6).integers(0, 2, (10, 12), dtype=np.uint8).repeat(4, 0)
    label = label.repeat(4, 1)
    image = np.stack([label * 255] * 3, axis=2)
    cfg = toy_config("INPUT.COLOR_AUG_SSD", False, "INPUT.SCALE_RANGE", [2.0, 2.0])
    augmentations = AugmentationList(build_train_augmentations(cfg, 255))
    flips = 0
    for seed in range(20):
        np.random.seed(seed)
        aug_input = AugInput(image, sem_seg=label)
        transforms = augmentations(aug_input)
        flips += any(type(t).__name__ == "HFlipTransform" for t in transforms.transforms)
        agreement = ((aug_input.image[..., 0] > 127) == aug_input.sem_seg).mean()
        assert agreement > 0.8
    assert 0 < flips < 20


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        (["INPUT.CROP.ENABLED", False], ["RandomResize", "RandomFlip", "PhotometricDistortion"]),
        (["INPUT.RANDOM_FLIP", "none"], ["RandomResize", "CategoryCrop", "PhotometricDistortion"]),
        (["INPUT.COLOR_AUG_SSD", False], ["RandomResize", "CategoryCrop", "RandomFlip"]),
    ],
)
def test_keys_switch_augmentations_off(keys: list, classes: list[str]) -> None:
    augmentations = build_train_augmentations(toy_config(*keys), 255)
    assert [type(augmentation).__name__ for augmentation in augmentations] == classes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.RESIZE", "torch"),
        ("INPUT.CROP.TYPE", "relative"),
        ("INPUT.CROP.SIZE", (0.9, 0.9)),
        ("INPUT.CROP.SIZE", (24,)),
        ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0),
        ("INPUT.SCALE_RANGE", [2.0, 0.5]),
        ("INPUT.SCALE_RANGE", [1.0]),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "all"),
        ("INPUT.RANDOM_FLIP", "both"),
    ],
)
def test_bad_keys_are_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: found .*, expected") as caught:
        build_train_augmentations(toy_config(key, value), 255)
    assert "\n" not in str(caught.value)
