"""A small convolutional network that says which pixels belong to seen classes.

docs/method.md, section 8: one query, as the trusty token is, can only separate single patches by a
plane; this network sees their neighbours, and its gradient never reaches the class path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError
from tagclip.modeling.losses.mask_losses import interpolation_matrix, strided
from tagclip.modeling.losses.seg_loss import SegTargets

__all__ = [
    "PADDING",
    "UNLABELLED",
    "ConvTrustyHead",
    "FeatureReplay",
    "TrustyBatch",
    "balanced_bce",
    "pixel_weights",
]

UNLABELLED, PADDING = -1, -2
# Classes with fewer pixels in a batch than this weigh no more than this many would.
_RARE = 50


class TrustyBatch(NamedTuple):
    """What the network learns from: patch vectors and where the seen classes are.

    Attributes:
        features: (N, D, h, w) half, detached.
        labels: (N, H', W') int16: index of a seen class, `UNLABELLED` or `PADDING`.
        size: (H, W) in pixels that h x w stands for.
        stride: every how many pixels there is a label, see `mask_losses.strided`.
    """

    features: Tensor
    labels: Tensor
    size: tuple[int, int]
    stride: int


class ConvTrustyHead(nn.Module):
    """Detached patch vectors -> logits of "this pixel belongs to a seen class".

    Per-channel normalisation, 1x1 convolution, ReLU, 3x3 convolution, ReLU, dropout, 1x1
    convolution, plus a linear map of the input. Learns from `loss` alone, which has an optimizer of
    its own (`tagclip.engine.trusty_training`).
    """

    def __init__(
        self, *, dim: int, channels: int = 48, dropout: float = 0.1, replay_batches: int = 1
    ) -> None:
        """Create the layers.

        Args:
            dim: channels D of the patch vectors.
            channels: of the hidden layers.
            dropout: before the last layer, while it learns.
            replay_batches: how many batches to learn from; 1: the current one.

        Raises:
            ConfigError: fewer than one channel or batch.
        """
        super().__init__()
        check_value("MODEL.TAGCLIP.TRUSTY.CONV.CHANNELS", channels)
        check_value("MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES", replay_batches)
        self.dropout = dropout
        self.norm = nn.BatchNorm2d(dim, affine=False)
        self.expand = nn.Conv2d(dim, channels, 1)
        self.context = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")
        self.output = nn.Conv2d(channels, 1, 1)
        self.skip = nn.Conv2d(dim, 1, 1, bias=False)
        self.replay = FeatureReplay(replay_batches)

    @classmethod
    def from_config(cls, cfg: CfgNode, dim: int) -> ConvTrustyHead | None:
        """Read ``MODEL.TAGCLIP.TRUSTY``; None where it asks for no such network.

        Args:
            cfg: see `tagclip.config`.
            dim: channels D of the patch vectors.

        Raises:
            ConfigError: the target is not ``seen``.
        """
        trusty = cfg.MODEL.TAGCLIP.TRUSTY
        if not trusty.ENABLED or trusty.KIND != "conv":
            return None
        if trusty.TARGET != "seen":
            raise ConfigError(
                f"MODEL.TAGCLIP.TRUSTY.TARGET: found {trusty.TARGET!r} with KIND conv, expected "
                "seen, the only target that it learns"
            )
        return cls(
            dim=dim,
            channels=trusty.CONV.CHANNELS,
            dropout=trusty.CONV.DROPOUT,
            replay_batches=trusty.CONV.REPLAY_BATCHES,
        )

    def forward(self, features: Tensor, learning: bool = False) -> Tensor:
        """Compute the logits.

        Args:
            features: (N, D, h, w) patch vectors.
            learning: normalise by the statistics of this batch, note them, and drop out;
                otherwise by those noted so far, and each image counts for itself.

        Returns:
            (N, 1, h, w) logits of P(pixel belongs to a seen class).
        """
        x = F.batch_norm(
            features,
            self.norm.running_mean,
            self.norm.running_var,
            training=learning,
            momentum=self.norm.momentum,
            eps=self.norm.eps,
        )
        hidden = F.relu(self.context(F.relu(self.expand(x))))
        return self.output(F.dropout(hidden, self.dropout, training=learning)) + self.skip(x)

    def remember(self, features: Tensor, targets: SegTargets, stride: int) -> None:
        """Keep a batch to learn from.

        Args:
            features: (N, D, h, w) patch vectors.
            targets: with ``trusty``, 1 on the pixels of seen classes; a ``part`` above 0 joins
                the batch that was kept last.
            stride: keep every ``stride``-th label in both directions.
        """
        labels = targets.labels.int().masked_fill(~targets.trusty, UNLABELLED)
        labels = labels.masked_fill(~targets.valid, PADDING)
        height, width = size = labels.shape[-2:]
        labels = labels[:, strided(height, stride), strided(width, stride)]
        self.replay.add(features, labels, size, stride, joins=targets.part > 0)

    def loss(self, batch: TrustyBatch) -> Tensor:
        """Return the balanced cross-entropy of a batch, a scalar; see `balanced_bce`."""
        # Those of a checkpoint are on the CPU.
        features = batch.features.to(self.norm.running_mean.device)
        logits = self(features.float(), learning=True)[:, 0]
        rows, columns = (
            interpolation_matrix(full, low, batch.stride, logits.device)
            for full, low in zip(batch.size, logits.shape[-2:], strict=True)
        )
        return balanced_bce(rows @ logits @ columns.T, batch.labels.to(logits.device))

    def extra_repr(self) -> str:
        """For print(model)."""
        return f"dropout={self.dropout}, replay_batches={self.replay.batches.maxlen}"


def pixel_weights(labels: Tensor) -> Tensor:
    """Weigh pixels so that seen and unlabelled ones have half of the mass each.

    Within the seen half a pixel of class c weighs in proportion to max(n_c, 50)^(-1/2), n_c being
    the pixels of c in the batch; unlabelled pixels weigh alike. A half without pixels is missing.

    Args:
        labels: (N, H, W), as in `TrustyBatch`.

    Returns:
        (N, H, W) float32; 0 on padding.
    """
    seen, unlabelled = labels >= 0, labels == UNLABELLED
    index = labels.clamp(min=0).long()
    counts = torch.bincount(index[seen], minlength=int(index.max()) + 1).float()
    weights = torch.where(seen, counts.clamp(min=_RARE).rsqrt()[index], 0.0)
    weights = 0.5 * weights / weights.sum().clamp(min=1e-12)
    return weights + 0.5 * unlabelled / unlabelled.sum().clamp(min=1)


def balanced_bce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of "seen" under `pixel_weights`, a scalar.

    Args:
        logits: (N, H, W) of P(pixel belongs to a seen class).
        labels: (N, H, W), as in `TrustyBatch`.
    """
    loss = F.binary_cross_entropy_with_logits(logits, (labels >= 0).float(), reduction="none")
    return (loss * pixel_weights(labels)).sum()


class FeatureReplay:
    """The last batches, so that the network may learn from more than the current one."""

    def __init__(self, batches: int) -> None:
        """Keep at most that many batches."""
        self.batches: deque[TrustyBatch] = deque(maxlen=batches)

    def add(
        self,
        features: Tensor,
        labels: Tensor,
        size: Sequence[int],
        stride: int,
        joins: bool = False,
    ) -> None:
        """Keep a batch, detached and small: half precision vectors and int16 labels.

        Args:
            features, labels, size, stride: see `TrustyBatch`.
            joins: whether the images belong to the batch that was added last.
        """
        kept = features.detach().to(torch.float16, copy=True), labels.to(torch.int16)
        if joins:
            kept = map(torch.cat, zip(self.batches.pop(), kept, strict=False))
        features, labels = kept
        # Joined parts lie otherwise than a whole batch, and dropout draws in memory order.
        features = features.contiguous(memory_format=torch.channels_last)
        self.batches.append(TrustyBatch(features, labels, (int(size[0]), int(size[1])), stride))

    def draw(self) -> TrustyBatch:
        """Return a random batch of those kept (torch's global generator)."""
        return self.batches[int(torch.randint(len(self.batches), ()))]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; a single batch is replaced before it is drawn from."""
        is_needed = self.batches.maxlen > 1
        return {"batches": [tuple(batch) for batch in self.batches] if is_needed else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the batches of `state_dict`."""
        self.batches.clear()
        for features, labels, size, stride in state["batches"]:
            self.batches.append(TrustyBatch(features, labels, tuple(size), stride))
