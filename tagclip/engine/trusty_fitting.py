"""When and on what the relative trusty map is fitted: before every checkpoint and evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor
from tqdm import tqdm

from tagclip.data import ZeroShotDatasetMapper
from tagclip.engine.data_stream import StreamLoader
from tagclip.modeling.heads.class_gaussians import (
    MAJORITY,
    MIXED,
    PatchStatistics,
    patch_labels,
    patch_share,
    with_context,
)
from tagclip.modeling.heads.none_of_these import LEAST_PATCHES, KeptPatches, choose_patches
from tagclip.modeling.heads.relative_trusty import PatchVectors, RelativeTrusty
from tagclip.modeling.losses.seg_loss import SegTargets
from tagclip.modeling.meta_arch import TagCLIP

__all__ = ["TrustyFitting", "fitting_stream", "labelled_patches"]


def fitting_stream(cfg: CfgNode, training: StreamLoader) -> StreamLoader:
    """Batches of the images that the map is fitted on: the first of the training stream.

    Args:
        cfg: see `tagclip.config`.
        training: the stream of training, whose samples are taken.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    return StreamLoader(
        training.samples,
        ZeroShotDatasetMapper(cfg, is_train=True),
        batch_size=batch,
        max_iter=math.ceil(cfg.MODEL.TAGCLIP.TRUSTY.RELATIVE.FIT_IMAGES / batch),
        seed=cfg.SEED,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def labelled_patches(
    model: TagCLIP, batch: list[dict[str, Any]]
) -> tuple[Tensor, dict[str, Tensor], SegTargets, Tensor]:
    """Run the image tower on a batch of training inputs and label its patches.

    Args:
        model: in evaluation mode, with a map of target ``seen``.
        batch: inputs of N images with labels, see `TagCLIP.forward`.

    Returns:
        (N, 3, H, W) normalised images, what the backbone makes of them, the targets, and (N, h, w)
        int64 seen classes of the patches, `MIXED` where there is none.
    """
    images, sizes = model.preprocess_images(batch)
    targets = model.preprocess_targets(batch, images.shape[-2:], sizes)
    features = model.backbone(images)
    known = targets.trusty & targets.valid
    grid = features["clip_dense"].shape[-2:]
    labels = patch_labels(targets.labels.long().where(known, MIXED), grid)
    return images, features, targets, labels


class TrustyFitting(HookBase):
    """Fits `RelativeTrusty` to the weights as they are, on images of the training stream.

    Every process does the same work on the same images, so that nothing depends on their number,
    and draws no random number of the training.
    """

    def __init__(self, model: TagCLIP, loader: StreamLoader, *, eval_period: int = 0) -> None:
        """Keep the parts.

        Args:
            model: with a map of kind ``relative``.
            loader: batches of training inputs, all of which are used.
            eval_period: iterations between two evaluations; 0: only at the end.
        """
        self._model, self._loader, self._period = model, loader, eval_period
        self._fitted_at = -1

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: TagCLIP, training: StreamLoader
    ) -> TrustyFitting | None:
        """Read ``MODEL.TAGCLIP.TRUSTY.RELATIVE``; None for a model without such a map.

        Args:
            cfg: see `tagclip.config`.
            model: whose map is fitted.
            training: the stream of training, whose first images are taken again.
        """
        if model.relative_trusty is None:
            return None
        model.relative_trusty.none_of_these.check_images(len(training.samples))
        return cls(model, fitting_stream(cfg, training), eval_period=cfg.TEST.EVAL_PERIOD)

    @torch.no_grad()
    def before_train(self) -> None:
        """Refuse images without unlabelled patches now if the first evaluation would refuse them.

        Raises:
            CheckpointError: see `NoneOfThese.check_unlabelled`.
        """
        none_of_these = self._model.relative_trusty.none_of_these
        if none_of_these.miss_rate is None:
            return
        was_training, found = self._model.training, 0
        self._model.eval()
        for batch in self._loader:
            _, features, targets, _ = labelled_patches(self._model, batch)
            found += int(_unlabelled(targets, features["clip_dense"].shape[-2:]).sum())
            # Most often the first batch shows enough.
            if found >= LEAST_PATCHES:
                break
        none_of_these.check_unlabelled(found)
        self._model.train(was_training)

    def after_step(self) -> None:
        """Fit where an evaluation may follow."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.fit()

    @torch.no_grad()
    def fit(self) -> None:
        """Fit, unless that was done after the same iteration."""
        if self._fitted_at == self.trainer.iter:
            return
        model = self._model
        was_training = model.training
        model.eval()
        gathered = _Gathered(model.relative_trusty, len(model.train_vocabulary))
        for batch in tqdm(self._loader, desc="Fitting the trusty map", disable=None, leave=False):
            images, features, targets, labels = labelled_patches(model, batch)
            files = [item["file_name"] for item in batch]
            gathered.add(features["clip_dense"], targets, labels, files)
            if room := gathered.room:
                features = {name: maps[:room] for name, maps in features.items()}
                gathered.keep(model.patch_vectors(images[:room], features), labels)
        gathered.fit()
        model.train(was_training)
        self._fitted_at = self.trainer.iter


class _Gathered:
    """What is taken from the images so far."""

    def __init__(self, trusty: RelativeTrusty, classes: int) -> None:
        """Begin with nothing."""
        self._trusty, self._classes = trusty, classes
        self._totals: tuple[PatchStatistics, ...] | None = None
        self._sample: list[tuple[Tensor, ...]] = []
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._files: list[str] = []
        self.room = trusty.sample_images

    def add(self, dense: Tensor, targets: SegTargets, labels: Tensor, files: Sequence[str]) -> None:
        """Count the patches (N, D, h, w) of a batch, and keep some of each input."""
        context, grid = with_context(dense), dense.shape[-2:]
        known = targets.trusty & targets.valid
        bare = _unlabelled(targets, grid)
        found = (
            PatchStatistics.of(context, labels, self._classes),
            PatchStatistics.of(context, torch.where(bare, 0, MIXED), 1),
        )
        if self._totals is not None:
            found = tuple(a.plus(b) for a, b in zip(self._totals, found, strict=True))
        self._totals = found
        vectors, seen = context.flatten(2), patch_share(known, grid).flatten(1)
        for image, share in zip(vectors, seen, strict=True):
            number, kept = len(self._kept), self._trusty.none_of_these.patches
            chosen = choose_patches(number, len(share), kept)
            self._kept.append((image[:, chosen].T.half(), share[chosen]))
        self._files += files

    def keep(self, vectors: PatchVectors, labels: Tensor) -> None:
        """Keep whole images, the first of a batch with these labels."""
        count = len(vectors.dense)
        seen = labels[:count] >= 0
        self._sample.append((vectors.dense, vectors.plain, vectors.whole, seen))
        self.room -= count

    def fit(self) -> None:
        """Fit the map."""
        *vectors, seen = (torch.cat(parts) for parts in zip(*self._sample, strict=True))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self._files))}
        images = torch.tensor([numbers[name] for name in self._files])
        kept = KeptPatches(*map(torch.stack, zip(*self._kept, strict=True)), images)
        self._trusty.fit(*self._totals, PatchVectors(*vectors), seen, kept)


def _unlabelled(targets: SegTargets, grid: torch.Size) -> Tensor:
    """(N, h, w) bool: patches that show hardly anything else."""
    return patch_share(~targets.trusty & targets.valid, grid) >= MAJORITY
