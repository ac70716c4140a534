"""The relative trusty map: what it compares, what it is calibrated to, when there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor
from torch.nn import functional as F

from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.heads.class_gaussians import (
    ClassGaussians,
    Foretelling,
    PatchStatistics,
    with_context,
)
from tagclip.modeling.heads.none_of_these import KeptPatches, NoneOfThese, check_room
from tagclip.modeling.heads.relative_trusty import PatchVectors, RelativeTrusty

SEEN, ASKED, DIM, GRID, IMAGES = 4, 6, 5, (3, 4), 12
# Images of which patches are kept for the test.
FIT = 40


def unit_vectors(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=1)


TEXT = unit_vectors(0, ASKED, DIM)
MASK = torch.arange(ASKED) < SEEN


def vectors(seed: int, images: int = IMAGES) -> PatchVectors:
    return PatchVectors(
        unit_vectors(seed, images, DIM, *GRID),
        unit_vectors(seed + 1, images, DIM, *GRID),
        unit_vectors(seed + 2, images, DIM),
    )


def decode(dense: Tensor, whole: Tensor) -> Tensor:
    """Some logits that depend on both."""
    return torch.einsum("ndhw,kd->nkhw", 3 * dense + whole[:, :, None, None], TEXT)


def make(
    miss_rate: float = 0.05, images: int = IMAGES, none: float | None = None
) -> RelativeTrusty:
    return RelativeTrusty(
        num_classes=SEEN,
        dim=DIM,
        grid=GRID,
        sample_images=images,
        miss_rate=miss_rate,
        none_of_these=NoneOfThese(channels=2 * DIM, inputs=FIT, patches=6, miss_rate=none),
    )


def fitted(
    miss_rate: float = 0.05, images: int = IMAGES, none: float | None = None
) -> RelativeTrusty:
    trusty, sample = make(miss_rate, images, none), vectors(10)
    labels = torch.randint(-1, SEEN, (IMAGES, *GRID), generator=torch.Generator().manual_seed(4))
    context = with_context(sample.dense)
    statistics = PatchStatistics.of(context, labels, SEEN)
    bare = PatchStatistics.of(3 + with_context(vectors(40).dense), 0 * labels, 1)
    kept = with_context(vectors(50, FIT).dense).flatten(2).transpose(1, 2)[:, :6]
    seen = torch.rand(FIT, 6, generator=torch.Generator().manual_seed(5))
    trusty.fit(statistics, bare, sample, labels >= 0, KeptPatches(kept, seen, torch.arange(FIT)))
    return trusty


def test_the_differences_are_those_of_the_best_classes() -> None:
    trusty = fitted()
    found = trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)
    new = vectors(20, 2)
    logits = decode(new.dense, new.whole)
    differences = found.differences(new, logits).numpy()
    own = logits[:, SEEN:].numpy().max(1) - logits[:, :SEEN].numpy().max(1)
    np.testing.assert_allclose(differences[:, 0], own, rtol=1e-5, atol=1e-6)
    smooth = uniform_filter(new.plain.numpy(), (1, 1, 3, 3), mode="nearest").astype(np.float64)
    likeness = 20 * np.einsum("ndhw,kd->nkhw", smooth, TEXT.double().numpy())
    sums = np.log(np.exp(likeness[:, SEEN:]).sum(1)) - np.log(np.exp(likeness[:, :SEEN]).sum(1))
    np.testing.assert_allclose(differences[:, 1], sums, rtol=1e-4, atol=1e-4)
    densities = trusty.gaussians.densities(TEXT[:SEEN], TEXT)
    logs = densities.best(with_context(new.dense), torch.stack([MASK, ~MASK])).numpy()
    np.testing.assert_allclose(differences[:, 2], logs[:, 1] - logs[:, 0], rtol=1e-5)
    # Each over its spread on seen patches, own logits twice as heavy as the others.
    standard = (differences - found.mean.numpy()[:, None, None]) / found.deviation.numpy()[
        :, None, None
    ]
    total = standard[:, 0] + standard[:, 1] / 2 + standard[:, 2] / 2
    expected = -found.scale * (total - found.threshold)
    trusty_map, margin = found(new, logits)
    np.testing.assert_allclose(trusty_map[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert margin is None


def usual(trusty: RelativeTrusty, miss: Callable[[Tensor], Tensor]) -> float:
    """Share of the seen patches of the sample for which something holds, one by one."""
    found = trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)
    maps = []
    for index in range(IMAGES):
        kept = PatchVectors(
            trusty.sample_dense[index : index + 1].float(),
            trusty.sample_plain[index : index + 1].float(),
            trusty.sample_whole[index : index + 1],
        )
        logits, _ = found(kept, decode(kept.dense, kept.whole))
        maps.append(logits[0, 0][trusty.sample_seen[index]])
    return miss(torch.cat(maps)).float().mean().item()


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.2, 1.0])
def test_the_map_misses_the_share_of_seen_patches_that_was_asked_for(rate: float) -> None:
    trusty = fitted(rate)
    patches = int(trusty.sample_seen.sum())
    found = usual(trusty, lambda logits: logits < -1e-4)
    assert rate - 2 / patches <= found <= rate


@pytest.mark.parametrize("side", [True, False])
@pytest.mark.parametrize("asked", [1, 3, ASKED])
def test_with_asked_classes_on_one_side_alone_the_map_is_sure(side: bool, asked: int) -> None:
    """Whatever is on the other side and not asked."""
    mask = torch.arange(ASKED) < asked if side else torch.arange(ASKED) >= asked
    found = make().map_for(TEXT[:SEEN], TEXT, mask, decode, asked=asked)
    new = vectors(20, 2)
    logits, margin = found(new, decode(new.dense, new.whole))
    assert logits.shape == (2, 1, *GRID)
    assert ((logits > 0) == side).all() and margin is None


@pytest.mark.parametrize("mask", [MASK, torch.zeros_like(MASK), torch.ones_like(MASK)])
@pytest.mark.parametrize("asked", [1, 3, ASKED])
def test_the_margin_is_that_of_the_likeliest_class_of_all(mask: Tensor, asked: int) -> None:
    """Of all that are compared, whichever are asked, and on whichever side."""
    trusty, new = fitted(none=0.1), vectors(20, 2)
    found = trusty.map_for(TEXT[:SEEN], TEXT, mask, decode, asked=asked)
    _, margin = found(new, decode(new.dense, new.whole))
    context = with_context(new.dense)
    everything = torch.ones(1, ASKED, dtype=torch.bool)
    likeliest = trusty.gaussians.densities(TEXT[:SEEN], TEXT).best(context, everything)
    bare = trusty.none_of_these.unlabelled.measured().best(context, everything[:, :1])
    expected = likeliest - bare - found.test.threshold
    torch.testing.assert_close(margin, expected, rtol=1e-4, atol=1e-3)


def test_what_is_compared_but_not_asked_is_compared_all_the_same() -> None:
    """Asked are a seen and an unseen class; with one side alone there is nothing to tell apart."""
    trusty, new, order = fitted(), vectors(20, 2), torch.tensor([0, 5, 1, 2, 3, 4])
    logits = decode(new.dense, new.whole)
    everything = trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)
    text, mask = TEXT[order], MASK[order]
    two = trusty.map_for(TEXT[:SEEN], text, mask, lambda *parts: decode(*parts)[:, order], asked=2)
    assert two.compares
    expected, _ = everything(new, logits)
    torch.testing.assert_close(two(new, logits[:, order])[0], expected, rtol=1e-4, atol=1e-4)
    one = trusty.map_for(TEXT[:SEEN], text, mask, decode, asked=1)
    assert not one.compares and (one(new, logits[:, :1])[0] > 0).all()


def test_the_test_leaves_the_map_as_it_is() -> None:
    new = vectors(20, 2)
    logits = decode(new.dense, new.whole)
    plain, tested = (
        fitted(none=none).map_for(TEXT[:SEEN], TEXT, MASK, decode)(new, logits)[0]
        for none in (None, 0.1)
    )
    torch.testing.assert_close(plain, tested)


def test_unfitted_it_is_refused_in_one_line() -> None:
    with pytest.raises(CheckpointError, match="^[^\n]*no training has fitted[^\n]*MODEL.WEIGHTS"):
        make().map_for(TEXT[:SEEN], TEXT, MASK, decode)


@pytest.mark.parametrize(("classes", "patches"), [(1, 100), (SEEN, 1)])
def test_what_was_fitted_on_too_little_is_told_from_what_never_was(
    classes: int, patches: int
) -> None:
    """One patch has no deviation: the map would be nan."""
    trusty = fitted()
    trusty.gaussians.counts[classes:] = 0
    trusty.sample_seen.flatten()[trusty.sample_seen.flatten().nonzero()[patches:, 0]] = False
    found = f"patches of {classes} seen classes[^\n]* {patches} in the sample"
    with pytest.raises(CheckpointError, match=f"^[^\n]*{found}[^\n]*FIT_IMAGES"):
        trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)


def test_a_smaller_sample_than_there_is_room_for() -> None:
    trusty = fitted(images=IMAGES + 3)
    assert not trusty.sample_seen[IMAGES:].any()
    same = fitted()
    a, b = (t.map_for(TEXT[:SEEN], TEXT, MASK, decode) for t in (trusty, same))
    assert a.threshold == b.threshold


def test_another_order_of_the_classes_gives_the_same_map() -> None:
    trusty, order = fitted(), torch.tensor([5, 2, 0, 4, 1, 3])

    def reordered(dense: Tensor, whole: Tensor) -> Tensor:
        return decode(dense, whole)[:, order]

    new = vectors(20, 2)
    logits = decode(new.dense, new.whole)
    plain, _ = trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)(new, logits)
    other = trusty.map_for(TEXT[:SEEN], TEXT[order], MASK[order], reordered)
    torch.testing.assert_close(other(new, logits[:, order])[0], plain, rtol=1e-4, atol=1e-4)


def test_what_was_loaded_counts_as_another_fit() -> None:
    trusty, other = fitted(), make()
    other.load_state_dict(trusty.state_dict())
    assert other.fits == 1
    a, b = (t.map_for(TEXT[:SEEN], TEXT, MASK, decode) for t in (trusty, other))
    assert a.threshold == b.threshold and a.scale == b.scale


@pytest.mark.parametrize(("name", "value"), [("miss_rate", 1.5), ("images", 0)])
def test_numbers_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="MODEL.TAGCLIP.TRUSTY.RELATIVE"):
        make(**{name: value})


def test_what_a_fit_tells_is_found_once_and_anew_after_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trusty, found = fitted(none=0.1), []
    original = ClassGaussians.foretelling

    def counted(self: ClassGaussians, trained: Tensor) -> Foretelling:
        found.append(trained)
        return original(self, trained)

    monkeypatch.setattr(ClassGaussians, "foretelling", counted)
    first = trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)
    trusty.map_for(TEXT[:SEEN], TEXT[:5], MASK[:5], lambda *parts: decode(*parts)[:, :5])
    assert len(found) == 1
    other = fitted(none=0.4)
    trusty.load_state_dict(other.state_dict())
    trusty.none_of_these.miss_rate = 0.4
    again = trusty.map_for(TEXT[:SEEN], TEXT, MASK, decode)
    assert len(found) == 2 and again.test.threshold > first.test.threshold
    expected = other.map_for(TEXT[:SEEN], TEXT, MASK, decode)
    assert again.test.threshold == expected.test.threshold
    turned = trusty.map_for(TEXT[:SEEN].flip(0), TEXT, MASK, decode)
    assert len(found) == 4 and turned.threshold != again.threshold


@pytest.mark.parametrize(
    ("channels", "fits"), [(4 << 20, True), ((4 << 20) + 1, False), (64 << 20, False)]
)
def test_what_no_memory_holds_is_refused_before_it_is_made(channels: int, fits: bool) -> None:
    """4 GiB of numbers of two bytes: of 512 patches, or maps of 256 images in two kinds."""
    for names, numbers in (("KEPT_PATCHES and FIT_IMAGES", 512), ("SAMPLE_IMAGES", 2 * 256)):
        if fits:
            check_room(names, numbers * channels)
        else:
            with pytest.raises(ConfigError, match=f"RELATIVE: found {names} for .* GiB, expected"):
                check_room(names, numbers * channels)
    if not fits:
        with pytest.raises(ConfigError, match="found KEPT_PATCHES and FIT_IMAGES for"):
            NoneOfThese(channels=channels, inputs=32, patches=16)
        with pytest.raises(ConfigError, match="found SAMPLE_IMAGES for"):
            # Nothing else is as wide.
            RelativeTrusty(
                num_classes=SEEN,
                dim=1,
                grid=(1, channels),
                sample_images=256,
                none_of_these=NoneOfThese(channels=2, inputs=FIT),
            )
