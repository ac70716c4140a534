"""Photometric distortion: what each parameter does, and how they are drawn."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.data.augmentation import PhotometricChange, PhotometricDistortion


def test_photometric_change_by_definition() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    bright = PhotometricChange(brightness=20.5, contrast=1.3)(image)
    first = np.clip(image + 20.5, 0, 255).astype(np.uint8)
    expected = np.clip(first * 1.3, 0, 255).astype(np.uint8)
    # float32 and float64 may differ by one where the product is an integer.
    assert np.abs(bright.astype(int) - expected).max() <= 1

    rotated = PhotometricChange(hue=18, saturation=0.5)(image)
    for old, new in zip(image.reshape(-1, 3), rotated.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(old / 255.0))
        color = colorsys.hsv_to_rgb((hue + 36 / 360) % 1, saturation / 2, value)
        # OpenCV rounds H to 2 degrees, S to 1/255.
        assert np.abs(new - 255 * np.array(color)).max() <= 6


@pytest.mark.parametrize("hue", [-18, 7])
def test_bgr_and_rgb_images_get_the_same_colours(hue: int) -> None:
    image = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    options = {"hue": hue, "saturation": 1.4, "brightness": -7.0}
    rgb = PhotometricChange(**options)(image)
    bgr = PhotometricChange(**options, image_format="BGR")(image[:, :, ::-1])
    np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])


def test_contrast_order_matters() -> None:
    image = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    before = PhotometricChange(contrast=1.5, saturation=1.5)(image)
    after = PhotometricChange(contrast=1.5, saturation=1.5, contrast_first=False)
    saturated = PhotometricChange(saturation=1.5)(image)
    expected = PhotometricChange(contrast=1.5)(saturated)
    np.testing.assert_array_equal(after(image), expected)
    assert (before != expected).any()


def _linear(array: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.clip(array.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


@settings(max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, -31.7, 20.5]),
    st.sampled_from([1.0, 0.53, 1.49]),
    st.sampled_from([1.0, 0.61, 1.5]),
    st.integers(-18, 18),
    st.booleans(),
    st.booleans(),
)
def test_steps_one_after_the_other(
    seed, brightness, contrast, saturation, hue, contrast_first: bool, mirrored: bool
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    image = image[:, ::-1] if mirrored else image
    before = image.copy()
    change = PhotometricChange(brightness, contrast, saturation, hue, contrast_first)
    expected = _linear(image, 1, brightness)
    if contrast_first:
        expected = _linear(expected, contrast, 0)
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(expected, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = _linear(hsv[..., 1], saturation, 0)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first:
        expected = _linear(expected, contrast, 0)
    np.testing.assert_array_equal(change(image), expected)
    np.testing.assert_array_equal(image, before)


def test_identity_changes_nothing() -> None:
    image = np.random.default_rng(4).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(PhotometricChange()(image), image)


def test_photometric_ranges_and_probabilities() -> None:
    np.random.seed(0)
    distortion = PhotometricDistortion("RGB")
    image = np.zeros((1, 1, 3), dtype=np.uint8)
    draws = [distortion.get_transform(image).op for _ in range(2000)]
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -18, 18),
    ):
        values = np.array([getattr(draw, name) for draw in draws])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        # The neutral hue is also one of the 37 steps.
        share = 0.5 + (0.5 / 37 if name == "hue" else 0)
        assert abs((values == neutral).mean() - share) < 0.05
    assert abs(np.mean([draw.contrast_first for draw in draws]) - 0.5) < 0.05
    switches = np.array(
        [(d.brightness != 0, d.contrast != 1, d.saturation != 1, d.hue != 0) for d in draws]
    )
    assert np.abs(np.corrcoef(switches.T) - np.eye(4)).max() < 0.1
