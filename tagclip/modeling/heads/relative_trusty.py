"""A trusty map that compares the asked classes, and so needs no picture of an unseen object.

docs/method.md, section 9: at every patch three differences between the best unseen and the best
seen class: of the model's own logits, of plain CLIP's likeness, and of Gaussian densities. What is
usual on seen classes, patches of training images tell, for any list of words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    PatchStatistics,
    local_mean,
    with_context,
)

__all__ = ["Decoder", "PatchVectors", "RelativeMap", "RelativeTrusty", "threshold_and_scale"]

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
        plain: (N, D, h, w) those of CLIP as it was published.
        whole: (N, D) image vectors.
    """

    dense: Tensor
    plain: Tensor
    whole: Tensor


@dataclass(frozen=True)
class RelativeMap:
    """The map for one list of classes.

    Attributes:
        class_embed: (K, D) unit class vectors.
        unseen: (K,) bool.
        densities: of the K classes; None where all are on one side.
        mean: (3,) of the differences on seen training patches.
        deviation: (3,) of the same.
        threshold: sum that so many seen training patches stay below as the miss rate leaves.
        scale: factor of what lies beyond it.
    """

    class_embed: Tensor
    unseen: Tensor
    densities: Densities | None
    mean: Tensor
    deviation: Tensor
    threshold: float = 0.0
    scale: float = 1.0

    def differences(self, vectors: PatchVectors, class_logits: Tensor) -> Tensor:
        """Return (N, 3, h, w): by how much the best unseen class is ahead of the best seen one.

        Args:
            vectors: of N images.
            class_logits: (N, K, h, w).
        """
        seen, unseen = ~self.unseen, self.unseen
        own = class_logits[:, unseen].amax(1) - class_logits[:, seen].amax(1)
        likeness = torch.einsum("ndhw,kd->nkhw", local_mean(vectors.plain), self.class_embed)
        likeness = likeness * _COSINE_SCALE
        plain = likeness[:, unseen].logsumexp(1) - likeness[:, seen].logsumexp(1)
        density = self.densities.gap(with_context(vectors.dense), unseen)
        return torch.cat([own[:, None], plain[:, None], density], dim=1)

    def sums(self, differences: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, 1, h, w): large means unseen."""
        standard = (differences - self.mean[:, None, None]) / self.deviation[:, None, None]
        weights = standard.new_tensor(_WEIGHTS)[:, None, None]
        return (standard * weights).sum(1, keepdim=True)

    def __call__(self, vectors: PatchVectors, class_logits: Tensor) -> Tensor:
        """Return the logits of P(pixel belongs to a seen class), (N, 1, h, w) float32.

        Args:
            vectors: of N images.
            class_logits: (N, K, h, w) of the classes of the map.
        """
        if self.densities is None:
            side = -_SURE if bool(self.unseen.all()) else _SURE
            return class_logits.new_full((len(class_logits), 1, *class_logits.shape[-2:]), side)
        sums = self.sums(self.differences(vectors, class_logits.float()))
        return -self.scale * (sums - self.threshold)


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
    ) -> None:
        """Begin unfitted.

        Args:
            num_classes: S, classes with masks.
            dim: channels D of the patch vectors.
            grid: (h, w) patches of a training image.
            sample_images: images that are kept, in half precision and in checkpoints.
            miss_rate: share of seen training patches at which the map says unseen.

        Raises:
            ConfigError: a number is out of its range.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.TRUSTY.RELATIVE.SAMPLE_IMAGES", sample_images)
        check_value("MODEL.TAGCLIP.TRUSTY.RELATIVE.MISS_RATE", miss_rate)
        self.miss_rate, self.sample_images = miss_rate, sample_images
        self.fits = 0
        self.gaussians = ClassGaussians(num_classes, 2 * dim)
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
        trusty = cfg.MODEL.TAGCLIP.TRUSTY
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
        )

    def fit(self, statistics: PatchStatistics, sample: PatchVectors, seen: Tensor) -> None:
        """Take over what training images show.

        Args:
            statistics: of `with_context` of the patch vectors, over the S seen classes.
            sample: of at most as many images as are kept; what is missing has no seen patch.
            seen: (N, h, w) bool, their patches of seen classes.
        """
        self.gaussians.fit(statistics)
        self.fits += 1
        count = len(seen)
        self.sample_seen.zero_()
        for kept, value in (
            (self.sample_dense, sample.dense),
            (self.sample_plain, sample.plain),
            (self.sample_whole, sample.whole),
            (self.sample_seen, seen),
        ):
            kept[:count] = value

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.fits += 1

    @torch.no_grad()
    def map_for(
        self, trained: Tensor, class_embed: Tensor, seen_mask: Tensor, decode: Decoder
    ) -> RelativeMap:
        """Make the map of a list of classes.

        Args:
            trained: (S, D) unit class vectors of the classes with masks.
            class_embed: (K, D) unit class vectors that are asked.
            seen_mask: (K,) bool, which of them count as seen.
            decode: patch vectors (1, D, h, w) and image vectors (1, D) -> logits (1, K, h, w).

        Raises:
            CheckpointError: it was never fitted, or on too little.
        """
        unseen = ~seen_mask
        nothing = class_embed.new_zeros(3)
        if not 0 < int(unseen.sum()) < len(unseen):
            return RelativeMap(class_embed, unseen, None, nothing, nothing + 1)
        if not self.gaussians.is_fitted or not self.sample_seen.any():
            raise CheckpointError(
                "MODEL.TAGCLIP.TRUSTY.KIND relative: found a map that no training has fitted, "
                "expected one of a checkpoint; give its MODEL.WEIGHTS, train, or set "
                "MODEL.TAGCLIP.TRUSTY.ENABLED False"
            )
        densities = self.gaussians.densities(trained, class_embed)
        draft = RelativeMap(class_embed, unseen, densities, nothing, nothing + 1)
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
        draft = RelativeMap(class_embed, unseen, densities, mean, deviation)
        sums = draft.sums(usual[None, :, :, None]).flatten()
        threshold, scale = threshold_and_scale(sums, self.miss_rate)
        return RelativeMap(class_embed, unseen, densities, mean, deviation, threshold, scale)

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"miss_rate={self.miss_rate}, sample_images={self.sample_images}"
