"""When and on what the relative trusty map is fitted: before every checkpoint and evaluation."""

from __future__ import annotations

import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from tqdm import tqdm

from tagclip.data import ZeroShotDatasetMapper
from tagclip.engine.data_stream import StreamLoader
from tagclip.modeling.heads.class_gaussians import (
    MIXED,
    PatchStatistics,
    patch_labels,
    with_context,
)
from tagclip.modeling.heads.relative_trusty import PatchVectors
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
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Run the image tower on a batch of training inputs and label its patches.

    Args:
        model: in evaluation mode, with a map of target ``seen``.
        batch: inputs of N images with labels, see `TagCLIP.forward`.

    Returns:
        (N, 3, H, W) normalised images, what the backbone makes of them, and (N, h, w) int64 seen
        classes of the patches, `MIXED` where there is none.
    """
    images, sizes = model.preprocess_images(batch)
    targets = model.preprocess_targets(batch, images.shape[-2:], sizes)
    features = model.backbone(images)
    known = targets.trusty & targets.valid
    grid = features["clip_dense"].shape[-2:]
    return images, features, patch_labels(targets.labels.long().where(known, MIXED), grid)


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
        return cls(model, fitting_stream(cfg, training), eval_period=cfg.TEST.EVAL_PERIOD)

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
        total, room = None, model.relative_trusty.sample_images
        sample: list[tuple[torch.Tensor, ...]] = []
        for batch in tqdm(self._loader, desc="Fitting the trusty map", disable=None, leave=False):
            images, features, labels = labelled_patches(model, batch)
            context = with_context(features["clip_dense"])
            found = PatchStatistics.of(context, labels, len(model.train_vocabulary))
            total = found if total is None else total.plus(found)
            if room > 0:
                kept = model.patch_vectors(
                    images[:room], {k: v[:room] for k, v in features.items()}
                )
                sample.append((kept.dense, kept.plain, kept.whole, labels[:room] >= 0))
                room -= len(kept.dense)
        *vectors, seen = (torch.cat(parts) for parts in zip(*sample, strict=True))
        model.relative_trusty.fit(total, PatchVectors(*vectors), seen)
        model.train(was_training)
        self._fitted_at = self.trainer.iter
