"""TagCLIP's training loss: focal, Dice and trusty terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from tagclip.config.checks import check_value
from tagclip.errors import ConfigError
from tagclip.modeling.losses.focal import Focal, binary_focal
from tagclip.modeling.losses.mask_losses import LabelGrid, MaskLosses, interpolation_matrix, strided

__all__ = ["Losses", "SegLoss", "SegTargets", "pixel_accuracy"]


@dataclass(frozen=True)
class SegTargets:
    """What a batch of images shows.

    Attributes:
        labels: (N, H, W) integer indices of the queried classes.
        valid: (N, H, W) bool, False on padding.
        trusty: (N, H, W) bool target of the trusty token, or None without one.
        ignore: value of ``labels`` on pixels of no queried class, padding included.
        open_classes: (K,) bool, queried classes that may stand on ignored pixels, which are then
            no negatives of theirs; None: no class does.
        part: number of this part within its batch, from 0.
    """

    labels: Tensor
    valid: Tensor
    trusty: Tensor | None
    ignore: int
    open_classes: Tensor | None = None
    part: int = 0


class Losses(dict[str, Tensor]):
    """Scalar losses by name, all over the same number of things.

    Attributes:
        count: that number before it is raised to 1, a scalar without gradient: losses of parts of
            a batch, each times its own, add up to the loss of the batch times the sum.
    """

    def __init__(self, values: Mapping[str, Tensor], count: Tensor) -> None:
        super().__init__(values)
        self.count = count


class SegLoss(nn.Module):
    """Focal, Dice and trusty terms, each over the number of (image, present class) pairs.

    With U the logits upsampled to H x W (bilinear, align_corners False), one-hot targets t,
    p = sigmoid(U), b images, k classes and x pixels (docs/method.md, section 5):

    * focal = sum_b sum_k mean_x FL(U, t), FL = alpha_t (1 - p_t)^gamma BCE, over all classes;
    * Dice = sum_b sum_k [1 - (2 sum_x p t + 1) / (sum_x p + sum_x t + 1)], present classes only;
    * trusty = sum_b mean_x FL(trusty logit, trusty target), or the Dice of every image's map.

    The number of pairs is averaged over the processes and at least 1. Memory does not depend on
    the number of classes: see `tagclip.modeling.losses.mask_losses`.
    """

    def __init__(
        self,
        *,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        trusty_weight: float = 10.0,
        trusty_loss: str = "focal",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        ignore_as_negative: bool = True,
        stride: int = 1,
        workspace_mib: float = 256,
        compiled: bool = False,
    ) -> None:
        """Keep the constants.

        Args:
            mask_weight: of the focal term.
            dice_weight: of the Dice term.
            trusty_weight: of the trusty term.
            trusty_loss: ``focal`` (released code) or ``dice``, what that term is.
            focal_alpha: focal weight of positives.
            focal_gamma: focal exponent.
            ignore_as_negative: ignored and padded pixels are negatives of every class (released
                code); False leaves them out of all terms, means included.
            stride: use every ``stride``-th label in both directions.
            workspace_mib: memory for full-resolution planes; never changes the result.
            compiled: let `torch.compile` fuse the passes over these planes.

        Raises:
            ConfigError: a number is outside the range of its key, or the trusty loss unknown.
        """
        check_value("MODEL.TAGCLIP.TRUSTY.LOSS", trusty_loss)
        for name, value in {
            "MASK": mask_weight,
            "DICE": dice_weight,
            "TRUSTY": trusty_weight,
            "FOCAL_ALPHA": focal_alpha,
            "FOCAL_GAMMA": focal_gamma,
            "STRIDE": stride,
        }.items():
            check_value(f"MODEL.TAGCLIP.LOSS.{name}", value)
        if not (mask_weight or dice_weight or trusty_weight):
            raise ConfigError(
                "MODEL.TAGCLIP.LOSS: found MASK, DICE and TRUSTY 0, expected one of them above 0: "
                "nothing would be learned"
            )
        super().__init__()
        self.mask_weight, self.dice_weight = mask_weight, dice_weight
        self.trusty_weight, self.trusty_loss = trusty_weight, trusty_loss
        self.focal = Focal(focal_alpha, focal_gamma, compiled)
        self.ignore_as_negative = ignore_as_negative
        self.stride, self.workspace_mib = stride, workspace_mib

    def forward(
        self, class_logits: Tensor, trusty_logits: Tensor | None, targets: SegTargets
    ) -> Losses:
        """Compute the losses in float32, whatever the logits' type.

        Args:
            class_logits: (N, S, h, w).
            trusty_logits: (N, 1, h, w) or None.
            targets: labels of the H x W pixels that h x w stands for.

        Returns:
            ``loss_mask``, ``loss_dice`` and, with a token, ``loss_trusty``: weighted scalars, over
            the number of pairs.
        """
        with torch.autocast(class_logits.device.type, enabled=False):
            logits = class_logits.float()
            grid = self._grid(targets, logits.shape[-2:])
            counts = grid.present(logits.shape[1])
            count = _world_mean((counts > 0).sum().float())
            pairs = count.clamp(min=1)
            focal, dice = MaskLosses.apply(logits, grid, counts, self.focal, self.workspace_mib)
            losses = {
                "loss_mask": self.mask_weight * focal / pairs,
                "loss_dice": self.dice_weight * dice / pairs,
            }
            if trusty_logits is not None:
                trusty = self._trusty_term(trusty_logits.float(), targets, grid)
                losses["loss_trusty"] = self.trusty_weight * trusty / pairs
        return Losses(losses, count)

    def _grid(self, targets: SegTargets, size: torch.Size) -> LabelGrid:
        labels = self._strided(targets.labels).int()
        # The ignore value may be a small number: -1 is no class for any vocabulary.
        labels = labels.masked_fill(labels == targets.ignore, -1)
        counted = None
        if not self.ignore_as_negative:
            counted = (labels >= 0) & self._strided(targets.valid)
        (height, width), device = targets.labels.shape[-2:], labels.device
        return LabelGrid(
            labels=labels,
            counted=counted,
            rows=interpolation_matrix(height, size[0], self.stride, device),
            columns=interpolation_matrix(width, size[1], self.stride, device),
            open_classes=targets.open_classes,
        )

    def _strided(self, planes: Tensor) -> Tensor:
        """Keep the pixels of (N, H, W) planes on which the loss is computed."""
        height, width = planes.shape[-2:]
        return planes[:, strided(height, self.stride), strided(width, self.stride)]

    def _trusty_term(self, logits: Tensor, targets: SegTargets, grid: LabelGrid) -> Tensor:
        """Sum over images of the token's focal loss, a mean over pixels, or Dice loss."""
        full, target = grid.upsample(logits[:, 0]), self._strided(targets.trusty)
        if self.trusty_loss == "dice":
            p = full.sigmoid()
            if grid.counted is not None:
                p, target = p * grid.counted, target & grid.counted
            overlap, mass = (p * target).sum(dim=(1, 2)), (p + target.float()).sum(dim=(1, 2))
            return (1 - (2 * overlap + 1) / (mass + 1)).sum()
        loss = binary_focal(full, target, self.focal.alpha, self.focal.gamma)
        if grid.counted is not None:
            loss = loss * grid.counted
        return (loss.sum(dim=(1, 2)) / grid.pixels()).sum()


@torch.no_grad()
def pixel_accuracy(class_logits: Tensor, targets: SegTargets) -> tuple[float, float]:
    """Return the share of labelled patch centres whose best class is right.

    Args:
        class_logits: (N, S, h, w).
        targets: labels of the H x W pixels that h x w stands for.

    Returns:
        Percent, 100 where nothing is labelled, as in mmseg; and how many centres are labelled.
    """
    (rows, columns), (height, width) = class_logits.shape[-2:], targets.labels.shape[-2:]
    device = class_logits.device
    y = ((torch.arange(rows, device=device) + 0.5) * height / rows).long()
    x = ((torch.arange(columns, device=device) + 0.5) * width / columns).long()
    labels = targets.labels[:, y[:, None], x]
    labelled = (labels != targets.ignore).sum()
    right = ((class_logits.argmax(dim=1) == labels) & (labels != targets.ignore)).sum()
    percent = torch.where(labelled > 0, 100 * right / labelled.clamp(min=1), 100.0)
    return tuple(torch.stack([percent, labelled.float()]).tolist())


def _world_mean(value: Tensor) -> Tensor:
    """Average a scalar over all processes."""
    if comm.get_world_size() == 1:
        return value
    torch.distributed.all_reduce(value)
    return value / comm.get_world_size()
