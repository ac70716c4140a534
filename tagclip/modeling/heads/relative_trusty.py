"""A trusty map that compares classes by name, and so needs no picture of an unseen object.

docs/method.md, section 9: at every patch three differences between the best asked unseen class and
the best seen one, asked or not: of the model's own logits, of plain CLIP's likeness, and of
Gaussian densities. What is usual on seen classes, patches of training images tell, for any list of
words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from tagclip.config.checks import check_value
from tagclip.data.protocol import Protocol
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.heads.class_gaussians import (
    ClassGaussians,
    Densities,
    Foretelling,
    PatchStatistics,
    local_mean,
    with_context,
)
from tagclip.modeling.heads.none_of_these import (
    Calibration,
    KeptPatches,
    NoneOfThese,
    PlausibilityTest,
    check_room,
)

__all__ = [
    "Decoder",
    "PatchVectors",
    "RelativeMap",
    "RelativeTrusty",
    "likeness",
    "threshold_and_scale",
]

# Weights of own logits, plain CLIP and densities, each over its standard deviation on seen classes.
_WEIGHTS = (1.0, 0.5, 0.5)
# How sure the map becomes within a standard deviation of the sum.
_STEEPNESS = 4.0
# Of cosines, within the smooth maximum over the classes of a side.
_COSINE_SCALE = 20.0
# Logit of the map where all asked classes are on one side.
_SURE = 10.0

Decoder = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PatchVectors:
    """What the map is made of, of N images.

    Attributes:
        dense: (N, D, h, w) patch vectors that the class path reads.
        plain: (N, D, h, w) those of CLIP as it was published; None where no map compares classes.
        whole: (N, D) image vectors.
    """

    dense: Tensor
    plain: Tensor | None
    whole: Tensor


@dataclass(frozen=True)
class RelativeMap:
    """The map for one list of classes.

    Attributes:
        class_embed: (K, D) unit class vectors of the asked classes and, behind them, of others of
            the training: a patch of one of these would look unseen if nothing asked were like it.
        unseen: (K,) bool.
        asked: how many are asked.
        densities: of the K classes; None where nothing is to be compared.
        mean: (3,) of the differences on seen training patches.
        deviation: (3,) of the same.
        threshold: sum that so many seen training patches stay below as the miss rate leaves.
        scale: factor of what lies beyond it.
        test: says where none of these classes is; None: not asked for.
    """

    class_embed: Tensor
    unseen: Tensor
    asked: int
    densities: Densities | None
    mean: Tensor
    deviation: Tensor
    threshold: float = 0.0
    scale: float = 1.0
    test: PlausibilityTest | None = None

    # Once for all windows: a GPU would wait for each answer.
    @cached_property
    def compares(self) -> bool:
        """Whether there are asked classes on both sides."""
        return 0 < int(self.unseen[: self.asked].sum()) < self.asked

    @cached_property
    def _groups(self) -> Tensor:
        """(2 or 3, K) bool: seen and unseen classes and, for the test, all of them."""
        groups = torch.stack([~self.unseen, self.unseen, torch.ones_like(self.unseen)])
        return groups[: 3 if self.test else 2]

    def _likeliest(self, context: Tensor) -> Tensor:
        """(N, 2D, h, w) -> (N, 2 or 3, h, w) log density of the likeliest class of each group."""
        return self.densities.best(context, self._groups)

    def differences(
        self, vectors: PatchVectors, class_logits: Tensor, likeliest: Tensor | None = None
    ) -> Tensor:
        """Return (N, 3, h, w): by how much the best unseen class is ahead of the best seen one.

        Args:
            vectors: of N images.
            class_logits: (N, K, h, w).
            likeliest: what the densities say, if that is known.
        """
        seen, unseen = ~self.unseen, self.unseen
        if likeliest is None:
            likeliest = self._likeliest(with_context(vectors.dense))
        own = class_logits[:, unseen].amax(1) - class_logits[:, seen].amax(1)
        alike = likeness(vectors, self.class_embed)
        plain = alike[:, unseen].logsumexp(1) - alike[:, seen].logsumexp(1)
        density = likeliest[:, 1] - likeliest[:, 0]
        return torch.stack([own, plain, density], dim=1)

    def sums(self, differences: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, 1, h, w): large means unseen."""
        standard = (differences - self.mean[:, None, None]) / self.deviation[:, None, None]
        weights = standard.new_tensor(_WEIGHTS)[:, None, None]
        return (standard * weights).sum(1, keepdim=True)

    def __call__(self, vectors: PatchVectors, class_logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compare the classes.

        Args:
            vectors: of N images.
            class_logits: (N, K, h, w) of the classes of the map; where it does not compare, those
                that are asked are enough.

        Returns:
            Logits of P(pixel belongs to a seen class), (N, 1, h, w) float32, and
            `PlausibilityTest.margin`, or None without a test.
        """
        likeliest = margin = None
        if self.densities is not None:
            context = with_context(vectors.dense)
            likeliest = self._likeliest(context)
            margin = self.test and self.test.margin(likeliest[:, 2:], context)
        if not self.compares:
            side = -_SURE if bool(self.unseen[: self.asked].all()) else _SURE
            shape = (len(class_logits), 1, *class_logits.shape[-2:])
            return class_logits.new_full(shape, side, dtype=torch.float32), margin
        sums = self.sums(self.differences(vectors, class_logits.float(), likeliest))
        return -self.scale * (sums - self.threshold), margin


def likeness(vectors: PatchVectors, class_embed: Tensor) -> Tensor:
    """Compare plain CLIP's patches, in the mean of 3 x 3, with classes.

    Args:
        vectors: of N images.
        class_embed: (K, D) unit class vectors.

    Returns:
        (N, K, h, w), 20 times the cosine for patches of unit length.
    """
    alike = torch.einsum("ndhw,kd->nkhw", local_mean(vectors.plain), class_embed)
    return alike * _COSINE_SCALE


def threshold_and_scale(usual: Tensor, miss_rate: float) -> tuple[float, float]:
    """From scores on seen patches to what turns a score into a logit, scale * (threshold - score).

    Args:
        usual: (M,) float, large means unseen.
        miss_rate: share of them beyond the threshold.
    """
    # kthvalue: quantile takes no more than 2^24 numbers.
    rank = min(len(usual), 1 + int((1 - miss_rate) * len(usual)))
    threshold = float(usual.kthvalue(rank).values)
    return threshold, _STEEPNESS / max(float(usual.std()), 1e-6)


class RelativeTrusty(nn.Module):
    """What seen classes look like, and some training images to find out what is usual on them.

    Fitted, not trained: `tagclip.engine.trusty_fitting` does it whenever a checkpoint is written or
    an evaluation follows.

    Attributes:
        sample_images: how many images are kept.
        fits: how often it was fitted or loaded: maps of another number are out of date.
    """

    sample_dense: Tensor
    sample_plain: Tensor
    sample_whole: Tensor
    sample_seen: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        grid: tuple[int, int],
        sample_images: int = 32,
        miss_rate: float = 0.05,
        none_of_these: NoneOfThese,
    ) -> None:
        """Begin unfitted.

        Args:
            num_classes: S, classes with masks.
            dim: channels D of the patch vectors.
            grid: (h, w) patches of a training image.
            sample_images: images that are kept, in half precision and in checkpoints.
            miss_rate: share of seen training patches at which the map says unseen.
            none_of_these: of 2D channels; fitted with it.

        Raises:
            ConfigError: a number is out of its range.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.TRUSTY.RELATIVE.SAMPLE_IMAGES", sample_images)
        check_value("MODEL.TAGCLIP.TRUSTY.RELATIVE.MISS_RATE", miss_rate)
        self.miss_rate, self.sample_images = miss_rate, sample_images
        self.fits = 0
        self._prepared: tuple[Any, Foretelling, Calibration | None] | None = None
        self.gaussians = ClassGaussians(num_classes, 2 * dim)
        self.none_of_these = none_of_these
        check_room("SAMPLE_IMAGES", 2 * sample_images * dim * grid[0] * grid[1])
        maps = torch.zeros(sample_images, dim, *grid, dtype=torch.float16)
        self.register_buffer("sample_dense", maps)
        self.register_buffer("sample_plain", maps.clone())
        self.register_buffer("sample_whole", torch.zeros(sample_images, dim))
        self.register_buffer("sample_seen", torch.zeros(sample_images, *grid, dtype=torch.bool))

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int, stride: int) -> RelativeTrusty | None:
        """Read ``MODEL.TAGCLIP.TRUSTY``; None where it asks for no such map.

        Args:
            cfg: see `tagclip.config`.
            dim: channels D of the patch vectors.
            stride: side of a patch in pixels.

        Raises:
            ConfigError: the target is not ``seen``, the setting not inductive, or training images
                have no common size.
        """
        trusty, test = cfg.MODEL.TAGCLIP.TRUSTY, cfg.MODEL.TAGCLIP.TEST
        if not trusty.ENABLED or trusty.KIND != "relative":
            return None
        for name, found, expected in (
            ("MODEL.TAGCLIP.TRUSTY.TARGET", trusty.TARGET, "seen"),
            ("DATASETS.ZERO_SHOT.SETTING", cfg.DATASETS.ZERO_SHOT.SETTING, "inductive"),
            ("INPUT.CROP.ENABLED", cfg.INPUT.CROP.ENABLED, True),
        ):
            if found != expected:
                raise ConfigError(
                    f"{name}: found {found!r} with MODEL.TAGCLIP.TRUSTY.KIND relative, expected "
                    f"{expected}, all that it is made for"
                )
        return cls(
            num_classes=len(Protocol(cfg).training),
            dim=dim,
            grid=tuple(-(-side // stride) for side in cfg.INPUT.CROP.SIZE),
            sample_images=trusty.RELATIVE.SAMPLE_IMAGES,
            miss_rate=trusty.RELATIVE.MISS_RATE,
            none_of_these=NoneOfThese(
                channels=2 * dim,
                inputs=trusty.RELATIVE.FIT_IMAGES,
                patches=trusty.RELATIVE.KEPT_PATCHES,
                miss_rate=test.BACKGROUND_MISS_RATE if test.BACKGROUND == "auto" else None,
            ),
        )

    def fit(
        self,
        statistics: PatchStatistics,
        unlabelled: PatchStatistics,
        sample: PatchVectors,
        seen: Tensor,
        kept: KeptPatches,
    ) -> None:
        """Take over what training images show.

        Args:
            statistics: of `with_context` of the patch vectors, over the S seen classes.
            unlabelled: the same of patches without label, as one class.
            sample: of at most as many images as are kept; what is missing has no seen patch.
            seen: (N, h, w) bool, their patches of seen classes.
            kept: some patches of all images, see `NoneOfThese.fit`.
        """
        self.gaussians.fit(statistics)
        self.none_of_these.fit(unlabelled, kept)
        self.fits += 1
        count = len(seen)
        self.sample_seen.zero_()
        for buffer, value in (
            (self.sample_dense, sample.dense),
            (self.sample_plain, sample.plain),
            (self.sample_whole, sample.whole),
            (self.sample_seen, seen),
        ):
            buffer[:count] = value

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.fits += 1

    @torch.no_grad()
    def map_for(
        self,
        trained: Tensor,
        class_embed: Tensor,
        seen_mask: Tensor,
        decode: Decoder,
        asked: int | None = None,
    ) -> RelativeMap:
        """Make the map of a list of classes.

        Args:
            trained: (S, D) unit class vectors of the classes with masks.
            class_embed: (K, D) unit class vectors that are compared.
            seen_mask: (K,) bool, which of them count as seen.
            decode: patch vectors (1, D, h, w) and image vectors (1, D) -> logits (1, K, h, w).
            asked: how many of them are asked, the first ones; None: all.

        Raises:
            CheckpointError: it was never fitted, or on too little.
        """
        nothing = class_embed.new_zeros(3)
        count = len(class_embed) if asked is None else asked
        draft = RelativeMap(class_embed, ~seen_mask, count, None, nothing, nothing + 1)
        if not draft.compares and self.none_of_these.miss_rate is None:
            return draft
        self._check_fitted()
        foretelling, calibration = self._of_this_fit(trained)
        densities = foretelling.densities(class_embed)
        test = None if calibration is None else calibration.test_for(densities)
        draft = replace(draft, densities=densities, test=test)
        return self._calibrated(draft, decode) if draft.compares else draft

    def _of_this_fit(self, trained: Tensor) -> tuple[Foretelling, Calibration | None]:
        """What does not depend on the asked classes."""
        key = self.fits, trained.device, trained.cpu().numpy().tobytes()
        # A name of its own: another thread may ask at the same time.
        found = self._prepared
        if found is None or found[0] != key:
            calibration = self.none_of_these.calibration()
            found = self._prepared = key, self.gaussians.foretelling(trained), calibration
        return found[1:]

    def check_promise(self) -> None:
        """Refuse now what the first image would be refused for: a miss rate that cannot be kept.

        Raises:
            CheckpointError: none of the classes can be an answer, and the map was never fitted, or
                on too little.
        """
        if self.none_of_these.miss_rate is not None:
            self._check_fitted()
            self.none_of_these.check_promise()

    def _check_fitted(self) -> None:
        patches, classes = int(self.sample_seen.sum()), int((self.gaussians.counts > 0).sum())
        if not (patches or classes):
            raise CheckpointError(
                "MODEL.TAGCLIP.TRUSTY.KIND relative: found a map that no training has fitted, "
                "expected one of a checkpoint; give its MODEL.WEIGHTS, train, or set "
                "MODEL.TAGCLIP.TRUSTY.ENABLED False"
            )
        # A deviation takes two patches.
        if patches < 2 or not self.gaussians.is_fitted:
            raise CheckpointError(
                "MODEL.TAGCLIP.TRUSTY.KIND relative: found a map that was fitted on patches of "
                f"{classes} seen classes, and {patches} in the sample, expected 2 or more of both; "
                "train with more TRUSTY.RELATIVE.FIT_IMAGES and SAMPLE_IMAGES, or set "
                "MODEL.TAGCLIP.TRUSTY.ENABLED False"
            )

    def _calibrated(self, draft: RelativeMap, decode: Decoder) -> RelativeMap:
        """Find out what is usual on the seen patches of the sample."""
        found = []
        for index in self.sample_seen.flatten(1).any(1).nonzero()[:, 0].tolist():
            dense, plain = (
                maps[index : index + 1].float() for maps in (self.sample_dense, self.sample_plain)
            )
            vectors = PatchVectors(dense, plain, self.sample_whole[index : index + 1])
            differences = draft.differences(vectors, decode(dense, vectors.whole))
            found.append(differences[0][:, self.sample_seen[index]])
        usual = torch.cat(found, dim=1)
        mean, deviation = usual.mean(1), usual.std(1).clamp(min=1e-6)
        draft = replace(draft, mean=mean, deviation=deviation)
        sums = draft.sums(usual[None, :, :, None]).flatten()
        threshold, scale = threshold_and_scale(sums, self.miss_rate)
        return replace(draft, threshold=threshold, scale=scale)

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"miss_rate={self.miss_rate}, sample_images={self.sample_images}"
