"""Gaussian densities of classes: against scipy and numpy in float64, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from scipy.stats import multivariate_normal
from torch.nn import functional as F

from tagclip.modeling.heads.class_gaussians import (
    MIXED,
    ClassGaussians,
    PatchStatistics,
    namesakes,
    patch_labels,
    with_context,
)

CLASSES, DIM, CHANNELS = 4, 3, 6
# Log densities leave the constant of their dimension out.
CHANNELS_PI = CHANNELS / 2 * np.log(2 * np.pi)


def patches(seed: int = 0, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors that lie apart by class, and their classes; some have none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(MIXED, CLASSES, (images, 4, 3), generator=generator)
    centres = torch.randn(CLASSES + 1, CHANNELS, generator=generator)
    noise = torch.randn(images, 4, 3, CHANNELS, generator=generator)
    return (centres[labels] + 0.4 * noise).permute(0, 3, 1, 2), labels


def unit_text(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, DIM, generator=generator), dim=1)


def fitted(seed: int = 0) -> ClassGaussians:
    gaussians = ClassGaussians(CLASSES, CHANNELS)
    gaussians.fit(PatchStatistics.of(*patches(seed), CLASSES))
    return gaussians


def naive_shrunk(covariance: np.ndarray, share: float) -> np.ndarray:
    return (1 - share) * covariance + share * np.trace(covariance) / len(covariance) * np.eye(
        len(covariance)
    )


def naive_regression(text: np.ndarray, means: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Primal ridge regression of what is left of the means beside a multiple of the names."""
    x, y = text - text.mean(0), means - means.mean(0)
    base = np.hstack([x] * (y.shape[1] // x.shape[1]))
    scale = (base * y).sum() / (base**2).sum()
    weights = np.linalg.inv(x.T @ x + 0.1 * np.eye(len(x.T))) @ x.T @ (y - scale * base)
    offset = asked - text.mean(0)
    return means.mean(0) + scale * np.tile(offset, y.shape[1] // x.shape[1]) + offset @ weights


def test_means_and_covariance_are_those_within_classes() -> None:
    vectors, labels = patches()
    gaussians = fitted()
    flat, classes = vectors.permute(0, 2, 3, 1).double().numpy(), labels.numpy()
    within = np.zeros((CHANNELS, CHANNELS))
    for k in range(CLASSES):
        own = flat[classes == k]
        assert gaussians.counts[k] == len(own)
        np.testing.assert_allclose(gaussians.means[k], own.mean(0), rtol=1e-5)
        within += np.cov(own.T, bias=True) * len(own)
    np.testing.assert_allclose(
        gaussians.covariance, within / (classes >= 0).sum(), rtol=1e-4, atol=1e-6
    )


def test_statistics_of_parts_add_up() -> None:
    vectors, labels = patches()
    whole = PatchStatistics.of(vectors, labels, CLASSES)
    parts = PatchStatistics.of(vectors[:2], labels[:2], CLASSES).plus(
        PatchStatistics.of(vectors[2:], labels[2:], CLASSES)
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("unseen", [[0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 0, 1]])
def test_the_best_classes_are_those_of_the_log_densities(unseen: list[int]) -> None:
    gaussians, text = fitted(), unit_text(1, CLASSES)
    asked = torch.cat([text, unit_text(2, 2)])
    mask = torch.tensor(unseen, dtype=torch.bool)
    vectors, _ = patches(3)
    groups = torch.stack([mask, ~mask, mask | ~mask])
    found = gaussians.densities(text, asked).best(vectors, groups)

    names, means = text.double().numpy(), gaussians.means.double().numpy()
    errors = []
    for k in range(CLASSES):
        rest = [i for i in range(CLASSES) if i != k]
        errors.append(naive_regression(names[rest], means[rest], names[k]) - means[k])
    within = naive_shrunk(gaussians.covariance.double().numpy(), 0.1)
    spread = naive_shrunk(np.transpose(errors) @ np.array(errors) / CLASSES, 0.5)
    flat = vectors.permute(0, 2, 3, 1).double().numpy()
    logs = [multivariate_normal(mean, within).logpdf(flat) for mean in means]
    for name in asked[CLASSES:].double().numpy():
        foretold = multivariate_normal(naive_regression(names, means, name), within + spread)
        logs.append(foretold.logpdf(flat))
    logs = np.array(logs) + CHANNELS_PI
    for index, group in enumerate(groups):
        expected = logs[group].max(0)
        np.testing.assert_allclose(found[:, index], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("count", [2, 3, 7, 24])
def test_foretold_classes_are_as_uncertain_as_those_left_out_were_wrong(count: int) -> None:
    """A regression for each class, in primal form; both fewer and more classes than channels."""
    text, seed = unit_text(5, count), torch.Generator().manual_seed(count)
    means = text.repeat(1, 2) + 0.3 * torch.randn(count, CHANNELS, generator=seed)
    gaussians = ClassGaussians(count, CHANNELS)
    gaussians.counts.fill_(9)
    gaussians.means.copy_(means)
    gaussians.covariance.copy_(torch.eye(CHANNELS))
    names, centres = text.double().numpy(), means.double().numpy()
    errors = []
    for k in range(count):
        names_left, centres_left = np.delete(names, k, 0), np.delete(centres, k, 0)
        if count == 2:
            errors.append(centres_left[0] - centres[k])
        else:
            errors.append(naive_regression(names_left, centres_left, names[k]) - centres[k])
    expected = np.eye(CHANNELS) + naive_shrunk(np.transpose(errors) @ errors / count, 0.5)
    _, whitening = gaussians.foretelling(text).whitening
    found = np.linalg.inv(whitening.double().numpy().T @ whitening.double().numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_group_without_classes_is_never_likely() -> None:
    gaussians, text = fitted(), unit_text(1, CLASSES)
    groups = torch.zeros(2, CLASSES, dtype=torch.bool)
    groups[1, 0] = True
    found = gaussians.densities(text, text).best(patches(3)[0], groups)
    assert (found[:, 0] == -torch.inf).all() and found[:, 1].isfinite().all()


def test_measured_classes_alone_are_the_same_gaussians() -> None:
    gaussians, text = fitted(), unit_text(1, CLASSES)
    groups = torch.eye(CLASSES, dtype=torch.bool)
    asked = [d.best(patches(3)[0], groups) for d in
             (gaussians.measured(), gaussians.densities(text, text))]  # fmt: skip
    torch.testing.assert_close(*asked)


def test_a_class_without_patches_is_foretold() -> None:
    vectors, labels = patches()
    gaussians = ClassGaussians(CLASSES, CHANNELS)
    gaussians.fit(PatchStatistics.of(vectors, labels.where(labels != 2, MIXED), CLASSES))
    text = unit_text(1, CLASSES)
    assert gaussians.densities(text, text).seen.tolist() == [True, True, False, True]


@pytest.mark.parametrize(("classes", "expected"), [(0, False), (1, False), (2, True)])
def test_two_classes_at_least_are_needed(classes: int, expected: bool) -> None:
    vectors, labels = patches()
    gaussians = ClassGaussians(CLASSES, CHANNELS)
    gaussians.fit(PatchStatistics.of(vectors, labels.where(labels < classes, MIXED), CLASSES))
    assert gaussians.is_fitted == expected
    if expected:
        text = unit_text(1, CLASSES)
        groups = torch.eye(CLASSES, dtype=torch.bool)
        assert gaussians.densities(text, text).best(vectors, groups).isfinite().all()


def test_context_is_the_mean_of_the_neighbours() -> None:
    vectors, _ = patches()
    found = with_context(vectors)
    assert torch.equal(found[:, :CHANNELS], vectors)
    expected = uniform_filter(vectors.numpy(), (1, 1, 3, 3), mode="nearest")
    np.testing.assert_allclose(found[:, CHANNELS:], expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_patch_has_the_class_of_most_of_its_pixels(data: st.DataObject) -> None:
    rows, columns, side = (data.draw(st.integers(1, n)) for n in (3, 3, 4))
    seed = data.draw(st.integers(0, 2**16))
    labels = np.random.default_rng(seed).integers(-1, 3, (2, rows * side, columns * side))
    labels[0] = data.draw(st.integers(-1, 2))
    found = patch_labels(torch.from_numpy(labels), (rows, columns))
    for image, row, column in np.ndindex(2, rows, columns):
        top, left = row * side, column * side
        block = labels[image, top : top + side, left : left + side].ravel()
        counts = [(block == k).mean() for k in range(3)]
        expected = int(np.argmax(counts)) if max(counts) >= 0.6 else MIXED
        assert found[image, row, column] == expected


def test_the_closest_classes_are_no_other_names_of_each_other() -> None:
    """Asked for one of the two alone: a product of another shape rounds their cosine anew."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        shared = 1.5 * torch.randn(512, generator=generator)
        trained = F.normalize(torch.randn(20, 512, generator=generator) + shared, dim=1)
        for index in range(len(trained)):
            expected = torch.arange(len(trained)) == index
            assert torch.equal(namesakes(trained, trained[index, None])[0], expected)


def test_what_is_nearer_than_any_two_classes_may_be_another_name() -> None:
    trained = torch.eye(4)
    trained[1] = F.normalize(torch.tensor([0.6, 0.8, 0.0, 0.0]), dim=0)
    near, far = (F.normalize(torch.tensor([0.0, 0.0, 1.0, x]), dim=0) for x in (1.2, 2.0))
    found = namesakes(trained, torch.stack([near, far]))
    assert found.tolist() == [[False, False, True, True], [False, False, False, True]]
    assert torch.equal(namesakes(trained, trained), torch.eye(4, dtype=torch.bool))
