"""Which pixels are of no class that is asked: a test with a stated miss rate, for any words.

docs/method.md, section 10: how much likelier the likeliest class is than what training images show
where nobody labelled anything. Patches of seen classes say which value is too small, as in
conformal risk control (arXiv 2208.02814).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from tagclip.config.checks import check_value
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.heads.class_gaussians import ClassGaussians, Densities, PatchStatistics

__all__ = [
    "LEAST_PATCHES",
    "Calibration",
    "KeptPatches",
    "NoneOfThese",
    "PlausibilityTest",
    "check_room",
    "choose_patches",
    "describe_background",
]

LEAST_PATCHES = 100
"""A covariance of fewer unlabelled patches says more of them than of what else there is."""
# Patches at a time, each of which has a distance to every class.
_CHUNK = 8192
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class PlausibilityTest:
    """The test for one list of classes.

    Attributes:
        unlabelled: Gaussian of patches without label.
        threshold: least difference of log densities at which some class is there.
    """

    unlabelled: Densities
    threshold: float

    def margin(self, likeliest: Tensor, vectors: Tensor) -> Tensor:
        """Return by how much some class is plausible: below 0 it is none of them.

        Args:
            likeliest: (N, 1, h, w) log density of the likeliest class.
            vectors: (N, C, h, w) float32, patches with context.

        Returns:
            (N, 1, h, w) float32.
        """
        only = torch.ones(1, 1, dtype=torch.bool, device=vectors.device)
        return likeliest - self.unlabelled.best(vectors, only) - self.threshold


@dataclass(frozen=True)
class KeptPatches:
    """Some patches of each of N training inputs, whatever is on them.

    Attributes:
        vectors: (N, P, C) with context.
        seen: (N, P) float32 share of their pixels with a seen class.
        images: (N,) int64 numbers, the same for inputs that are crops of one image.
    """

    vectors: Tensor
    seen: Tensor
    images: Tensor


class NoneOfThese(nn.Module):
    """What training images show without label, and patches of seen classes to set thresholds by.

    Fitted, not trained, together with `RelativeTrusty`.
    """

    vectors: Tensor
    seen: Tensor
    images: Tensor

    def __init__(
        self,
        *,
        channels: int,
        inputs: int = 800,
        patches: int = 10,
        miss_rate: float | None = None,
    ) -> None:
        """Begin unfitted.

        Args:
            channels: C of patches with context.
            inputs: training inputs of which patches are kept.
            patches: how many of each, in half precision and in checkpoints.
            miss_rate: expected share of an image's seen pixels that may be lost; None: no test is
                asked for.

        Raises:
            ConfigError: a number is out of its range, or see `check_images`.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES", inputs)
        check_value("MODEL.TAGCLIP.TRUSTY.RELATIVE.KEPT_PATCHES", patches)
        self.miss_rate, self.patches = miss_rate, patches
        if miss_rate is not None:
            check_value("MODEL.TAGCLIP.TEST.BACKGROUND_MISS_RATE", miss_rate)
        self.check_images(inputs)
        check_room("KEPT_PATCHES and FIT_IMAGES", inputs * patches * channels)
        self.unlabelled = ClassGaussians(1, channels)
        self.register_buffer("vectors", torch.zeros(inputs, patches, channels, dtype=torch.half))
        self.register_buffer("seen", torch.zeros(inputs, patches))
        self.register_buffer("images", torch.zeros(inputs, dtype=torch.long))

    def check_images(self, count: int) -> None:
        """Refuse so few training images that they cannot promise the miss rate.

        Args:
            count: at most so many images the map will be fitted on.

        Raises:
            ConfigError: they are too few.
        """
        if self.miss_rate is not None and count < _least_images(self.miss_rate):
            raise ConfigError(
                "MODEL.TAGCLIP.TEST.BACKGROUND: found auto with BACKGROUND_MISS_RATE "
                f"{self.miss_rate:g} and a map of at most {count} training images, expected "
                f"{_least_images(self.miss_rate)} or more, which can promise it; raise the rate, "
                "or train on as many, with MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES no lower"
            )

    def check_unlabelled(self, found: int) -> None:
        """Refuse so few patches without label that nothing is known of what else there is.

        Args:
            found: their number in the images that the map is fitted on.

        Raises:
            CheckpointError: they are too few.
        """
        if found < LEAST_PATCHES:
            raise CheckpointError(
                f"MODEL.TAGCLIP.TEST.BACKGROUND: found auto with {found} unlabelled patches in the "
                f"training images of the map, expected at least {LEAST_PATCHES} that show what is "
                "of no class; set it to threshold, and BACKGROUND_THRESHOLD"
            )

    def fit(self, unlabelled: PatchStatistics, kept: KeptPatches) -> None:
        """Take over what training images show.

        Args:
            unlabelled: of patches with context, as one class.
            kept: of as many inputs as there is room for; what is missing weighs nothing.
        """
        self.unlabelled.fit(unlabelled)
        self.seen.zero_()
        count = min(len(kept.seen), len(self.seen))
        self.vectors[:count] = kept.vectors[:count]
        self.seen[:count] = kept.seen[:count]
        self.images[:count] = kept.images[:count]

    def calibration(self) -> Calibration | None:
        """Gather what thresholds are made of; None where no test is asked for.

        Raises:
            CheckpointError: it was fitted on too little, or what was fitted is damaged.
        """
        if self.miss_rate is None:
            return None
        weights, images = self._weights()
        unlabelled = self.unlabelled.measured()
        vectors = self.vectors.flatten(0, 1)
        bare = _best(unlabelled, vectors)
        return Calibration(
            unlabelled, vectors, bare, weights, _rate_on_sample(self.miss_rate, images)
        )

    def check_promise(self) -> None:
        """Refuse a miss rate that what was fitted cannot keep; without one there is no promise.

        Raises:
            CheckpointError: see `calibration`.
        """
        if self.miss_rate is not None:
            self._weights()

    def _weights(self) -> tuple[Tensor, int]:
        """(M,) `Calibration.weights`, and the number of images behind them."""
        self.check_unlabelled(int(self.unlabelled.counts))
        shares = self.seen.double()
        if not ((self.images >= 0) & (self.images < len(shares))).all():
            raise CheckpointError(
                "sem_seg_head.trusty_relative.none_of_these.images: found numbers that no image "
                f"has, expected 0 to {len(shares) - 1}; the checkpoint is damaged: take another"
            )
        # Crops of one image tell no more of another image than it does.
        total = shares.new_zeros(len(shares)).index_add(0, self.images, shares.sum(1))
        images = int((total > 0).sum())
        if images < _least_images(self.miss_rate):
            raise CheckpointError(
                f"MODEL.TAGCLIP.TEST.BACKGROUND: found auto with {images} images of seen classes "
                f"behind the map, expected at least {_least_images(self.miss_rate)} for "
                f"BACKGROUND_MISS_RATE {self.miss_rate:g}; raise the rate, or train on as many"
            )
        return (shares / total[self.images].clamp(min=1e-12)[:, None]).flatten(), images


@dataclass(frozen=True)
class Calibration:
    """What gives any list of classes its threshold; the same for all of them.

    Attributes:
        unlabelled: Gaussian of patches without label.
        vectors: (M, C) half, kept patches with context.
        bare: (M,) log densities of patches without label.
        weights: (M,) float64 seen pixels of each, those of an image add up to 1.
        rate: share of the weight that may be lost.
    """

    unlabelled: Densities
    vectors: Tensor
    bare: Tensor
    weights: Tensor
    rate: float

    def test_for(self, densities: Densities) -> PlausibilityTest:
        """Set the threshold.

        Args:
            densities: of all classes that make a pixel plausible, seen ones among them.
        """
        scores = _best(densities, self.vectors) - self.bare
        return PlausibilityTest(
            self.unlabelled, _weighted_quantile(scores, self.weights, self.rate)
        )


def check_room(names: str, numbers: int) -> None:
    """Refuse what would not fit into memory and checkpoints.

    Args:
        names: of the keys below MODEL.TAGCLIP.TRUSTY.RELATIVE that say how many numbers there are.
        numbers: of two bytes each.

    Raises:
        ConfigError: they take more than 4 GiB.
    """
    if 2 * numbers > _MOST_BYTES:
        raise ConfigError(
            f"MODEL.TAGCLIP.TRUSTY.RELATIVE: found {names} for {2 * numbers / 2**30:.0f} GiB, "
            f"expected at most {_MOST_BYTES >> 30}; lower them"
        )


def choose_patches(image: int, patches: int, kept: int) -> Tensor:
    """(kept,) indices of an image's patches, the same whenever it is asked, other ones for others.

    Args:
        image: number of the image.
        patches: how many it has; where that is less than ``kept`` they come again.
        kept: how many to choose.
    """
    # A generator of its own: the training's random numbers stay as they are.
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(image))
    return order.repeat(-(-kept // patches))[:kept]


def _best(densities: Densities, vectors: Tensor) -> Tensor:
    """(M, C) half -> (M,) log density of the likeliest class."""
    everything = torch.ones(1, len(densities.seen), dtype=torch.bool, device=vectors.device)
    parts = [
        densities.best(part.float().T[None, :, None], everything).flatten()
        for part in vectors.split(_CHUNK)
    ]
    return torch.cat(parts)


def _rate_on_sample(rate: float, images: int) -> float:
    """Share that may be lost on so many images for an expected share of ``rate`` on a new one.

    Conformal risk control (arXiv 2208.02814): n / (n + 1) R + 1 / (n + 1) <= rate, as no image
    loses more than all of its pixels.
    """
    return max(0.0, rate - (1 - rate) / images)


def _least_images(rate: float) -> int:
    """Fewest images that can promise a rate and lose anything at all."""
    # 1 / 0.05 - 1 must not come out below 19.
    return math.floor(1 / rate - 1 + 1e-9) + 1


def _weighted_quantile(values: Tensor, weights: Tensor, share: float) -> float:
    """Largest value below which there is at most that share of the weight."""
    values, order = values.flatten().double().sort()
    below = weights.flatten()[order].cumsum(0)
    index = int((below <= share * below[-1]).sum())
    return float(values[min(index, len(values) - 1)])


def describe_background(test: CfgNode) -> str:
    """Say in words which pixels get no class.

    Args:
        test: ``MODEL.TAGCLIP.TEST``.

    Returns:
        What BACKGROUND and its numbers ask for; "" if every pixel gets a class.
    """
    auto, threshold = test.BACKGROUND == "auto", test.BACKGROUND_THRESHOLD
    parts = [f"auto, miss rate {test.BACKGROUND_MISS_RATE:g}"] if auto else []
    parts += [f"threshold {threshold:g}"] if threshold > 0 else []
    return ", ".join(parts)
