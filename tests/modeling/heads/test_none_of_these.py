"""The test for none of the classes: its threshold, its promise, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.heads.class_gaussians import ClassGaussians, Densities, PatchStatistics
from tagclip.modeling.heads.none_of_these import KeptPatches, NoneOfThese, choose_patches

CLASSES, CHANNELS = 3, 4
EVERYTHING = torch.ones(1, CLASSES, dtype=torch.bool)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def known() -> Densities:
    """Of classes that lie apart."""
    vectors = draw(0, 1, CHANNELS, 20, 30)
    labels = torch.arange(600).view(1, 20, 30) % CLASSES
    vectors += 3 * draw(1, CLASSES, CHANNELS)[labels].permute(0, 3, 1, 2)
    gaussians = ClassGaussians(CLASSES, CHANNELS)
    gaussians.fit(PatchStatistics.of(vectors, labels, CLASSES))
    return gaussians.measured()


def unlabelled(patches: int = 500) -> PatchStatistics:
    vectors = 4 * draw(2, 1, CHANNELS, 1, patches) + 1
    return PatchStatistics.of(vectors, torch.zeros(1, 1, patches), 1)


def kept(images: int, patches: int = 7) -> KeptPatches:
    vectors = 2.5 * draw(3, images, patches, CHANNELS)
    seen = draw(4, images, patches).sigmoid()
    seen[draw(5, images, patches) > 0.5] = 0
    return KeptPatches(vectors.half(), seen, torch.arange(images))


def fitted(rate: float, images: int = 60, room: int = 60) -> NoneOfThese:
    found = NoneOfThese(channels=CHANNELS, inputs=room, patches=7, miss_rate=rate)
    found.fit(unlabelled(), kept(images))
    return found


def lost(found: NoneOfThese, sample: KeptPatches) -> np.ndarray:
    """Of each image, the share of its seen pixels that the test calls none, one patch at a time."""
    densities = known()
    test = found.calibration().test_for(densities)
    shares = []
    for vectors, seen in zip(sample.vectors, sample.seen, strict=True):
        below = []
        for vector in vectors.float():
            point = vector[None, :, None, None]
            # One by one they round differently, and one of them is the threshold itself.
            below.append(float(test.margin(densities.best(point, EVERYTHING), point)) < -1e-3)
        shares.append(np.average(below, weights=seen) if seen.any() else np.nan)
    return np.array(shares)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.6])
def test_the_kept_images_lose_what_the_promise_leaves_and_no_less(rate: float) -> None:
    """n / (n + 1) times their mean and 1 / (n + 1) is the most that a new image is expected to."""
    found = fitted(rate)
    shares = lost(found, kept(60))
    mean, images = np.nanmean(shares), np.isfinite(shares).sum()
    bound = images / (images + 1) * mean + 1 / (images + 1)
    assert bound <= rate
    # One patch more would be too much.
    assert rate - bound < 1 / images


def test_new_images_keep_the_promise_on_average() -> None:
    rates = []
    densities = known()
    for seed in range(40):
        vectors = 2.5 * draw(seed + 100, 80, 7, CHANNELS)
        found = NoneOfThese(channels=CHANNELS, inputs=40, patches=7, miss_rate=0.1)
        sample = KeptPatches(vectors[:40].half(), torch.ones(40, 7), torch.arange(40))
        found.fit(unlabelled(), sample)
        test = found.calibration().test_for(densities)
        points = vectors[40:].flatten(0, 1).T[None, :, None]
        rates.append(
            float((test.margin(densities.best(points, EVERYTHING), points) < 0).float().mean())
        )
    # Standard error of the mean: 0.3 percentage points.
    assert 0.07 < np.mean(rates) < 0.11


def test_what_is_missing_weighs_nothing() -> None:
    few, many = (fitted(0.2, 30, room).calibration().test_for(known()) for room in (30, 50))
    assert few.threshold == many.threshold
    # Nor what an earlier fit had kept.
    again = fitted(0.2, 50, 50)
    again.fit(unlabelled(), kept(30))
    assert again.calibration().test_for(known()).threshold == few.threshold


def test_crops_of_one_image_count_as_one() -> None:
    """As if all their patches were those of one input."""
    sample = kept(60)
    crops = NoneOfThese(channels=CHANNELS, inputs=60, patches=7, miss_rate=0.2)
    crops.fit(unlabelled(), replace(sample, images=torch.arange(60) // 3))
    wide = NoneOfThese(channels=CHANNELS, inputs=20, patches=21, miss_rate=0.2)
    vectors, seen = sample.vectors.reshape(20, 21, CHANNELS), sample.seen.reshape(20, 21)
    wide.fit(unlabelled(), KeptPatches(vectors, seen, torch.arange(20)))
    found, expected = (each.calibration().test_for(known()).threshold for each in (crops, wide))
    assert found == expected < fitted(0.2).calibration().test_for(known()).threshold


def test_patches_without_a_seen_pixel_do_not_matter() -> None:
    plain, other = fitted(0.2), fitted(0.2)
    other.vectors[other.seen == 0] = 7.0
    assert (
        plain.calibration().test_for(known()).threshold
        == other.calibration().test_for(known()).threshold
    )


def test_no_test_is_made_where_none_is_asked_for() -> None:
    found = NoneOfThese(channels=CHANNELS, inputs=5, patches=2)
    assert found.calibration() is None


def test_far_from_every_class_there_is_none() -> None:
    densities, test = known(), fitted(0.1).calibration().test_for(known())
    centres = torch.linalg.solve(densities.whitening[0], densities.centres.T)
    points = torch.cat([centres, 30 * draw(9, CHANNELS, 50)], dim=1)[None, :, None]
    margin = test.margin(densities.best(points, EVERYTHING), points)[0, 0, 0]
    assert (margin[:CLASSES] > 0).all() and (margin[CLASSES:] < 0).all()


def test_too_few_images_are_refused_when_it_is_built() -> None:
    with pytest.raises(ConfigError, match="^[^\n]*most 20 training images, expected 90 or more"):
        NoneOfThese(channels=CHANNELS, inputs=20, patches=2, miss_rate=0.011)
    with pytest.raises(ConfigError, match="^[^\n]*most 19 training images, expected 20 or more"):
        NoneOfThese(channels=CHANNELS, inputs=19, patches=2, miss_rate=0.05)
    NoneOfThese(channels=CHANNELS, inputs=20, patches=2, miss_rate=0.05)


def test_doing_what_the_message_says_ends_the_trouble() -> None:
    for rate in (0.001, 0.05, 0.1, 1 / 3, 0.5, 0.9):
        for images in range(1, 40):
            try:
                NoneOfThese(channels=1, inputs=images, patches=1, miss_rate=rate)
            except ConfigError as error:
                least = int(str(error).split("expected ")[1].split()[0])
                assert least > images
                NoneOfThese(channels=1, inputs=least, patches=1, miss_rate=rate)


def test_too_few_images_with_seen_pixels_are_refused() -> None:
    found = fitted(0.05)
    found.seen[10:] = 0
    with pytest.raises(CheckpointError, match="^[^\n]*10 images of seen classes[^\n]*least 20"):
        found.calibration().test_for(known())


def test_numbers_that_no_image_has_are_refused() -> None:
    """As a damaged checkpoint may hold them."""
    found = fitted(0.05)
    for number in (-1, len(found.images), 10**9):
        found.images[3] = number
        with pytest.raises(CheckpointError, match="^[^\n]*images: found numbers that no image"):
            found.calibration().test_for(known())


def test_training_images_without_unlabelled_patches_are_refused() -> None:
    found = fitted(0.2)
    found.unlabelled.fit(unlabelled(99))
    with pytest.raises(CheckpointError, match="^[^\n]*found auto with 99 unlabelled patches"):
        found.calibration().test_for(known())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"inputs": 0}, "TRUSTY.RELATIVE.FIT_IMAGES"),
        ({"patches": 0}, "TRUSTY.RELATIVE.KEPT_PATCHES"),
        ({"miss_rate": 0.0}, "TEST.BACKGROUND_MISS_RATE"),
        ({"miss_rate": 1.0}, "TEST.BACKGROUND_MISS_RATE"),
    ],
)
def test_numbers_out_of_range_are_named(options: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^MODEL.TAGCLIP.{key}: found"):
        NoneOfThese(channels=CHANNELS, **options)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 90))
def test_chosen_patches_are_patches_and_differ_as_far_as_they_can(
    image: int, patches: int, count: int
) -> None:
    state = torch.get_rng_state()
    found = choose_patches(image, patches, count)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, choose_patches(image, patches, count))
    assert found.shape == (count,) and found.min() >= 0 and found.max() < patches
    assert len(found.unique()) == min(count, patches)
