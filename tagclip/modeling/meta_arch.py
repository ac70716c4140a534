"""TagCLIP: from images and a vocabulary to losses or label maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.data.protocol import query_vocabulary, resolve_seen, training_vocabulary
from tagclip.errors import DatasetError, VocabularyError
from tagclip.modeling.gating import gate_scores, trusty_probability
from tagclip.modeling.losses import SegTargets, pixel_accuracy
from tagclip.modeling.score_fusion import InferenceSettings, ScoreFusion
from tagclip.modeling.sliding_window import WindowGrid
from tagclip.modeling.text_bank import TextBank
from tagclip.vocabulary import Vocabulary

__all__ = ["TagCLIP"]


@META_ARCH_REGISTRY.register()
class TagCLIP(nn.Module):
    """Zero-shot semantic segmentation with trusty-token-guided CLIP (arXiv 2304.07547).

    Training, evaluation, cross-dataset and free-text inference differ only in the
    `Vocabulary` that is asked.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        text_bank: TextBank,
        train_vocabulary: Vocabulary,
        vocabulary: Vocabulary,
        unknown_classes: str,
        trusty_target: str,
        gate: Callable[[Tensor, Tensor | None, Tensor], Tensor],
        inference: InferenceSettings,
        train_size: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        """Assemble built parts.

        Args:
            backbone: images (N, 3, H, W) -> ``clip_dense`` and ``clip_global``.
            sem_seg_head: features and class vectors -> low-resolution logits or losses.
            text_bank: `Vocabulary` -> (K, D) class vectors.
            train_vocabulary: the classes that training labels index.
            vocabulary: the classes asked when an input brings no ``vocabulary``.
            unknown_classes: ``match``, ``seen`` or ``unseen``, for vocabularies without a split.
            trusty_target: ``seen`` or ``novel``, what the trusty token is trained on.
            gate: (scores, trusty, seen_mask) -> gated scores, see `gate_scores`.
            inference: windows, memory and output form.
            train_size: (height, width) in pixels to which training batches are padded at least.
            pixel_mean: per channel, in units of the uint8 image.
            pixel_std: per channel, in units of the uint8 image.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.text_bank = text_bank
        self.train_vocabulary = train_vocabulary
        self.vocabulary = vocabulary
        self.unknown_classes = unknown_classes
        self.trusty_target = trusty_target
        self.gate = gate
        self.inference_settings = inference
        self.train_size = tuple(train_size)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        ignore = train_vocabulary.ignore_index
        trusted = torch.zeros(max(ignore, len(train_vocabulary)) + 1, dtype=torch.bool)
        trusted[: len(train_vocabulary)] = torch.from_numpy(train_vocabulary.seen_mask)
        self.register_buffer("trusted_labels", trusted, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        test = cfg.MODEL.TAGCLIP.TEST
        train_vocabulary = training_vocabulary(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "text_bank": TextBank(cfg),
            "train_vocabulary": train_vocabulary,
            "vocabulary": query_vocabulary(cfg, cfg.DATASETS.TEST[0])
            if cfg.DATASETS.TEST
            else train_vocabulary,
            "unknown_classes": test.UNKNOWN_CLASSES,
            "trusty_target": cfg.MODEL.TAGCLIP.TRUSTY.TARGET,
            "gate": partial(
                gate_scores,
                mode=test.GATE,
                bias=test.SEEN_BIAS,
                bias_after_gate=test.BIAS_AFTER_GATE,
            ),
            "inference": InferenceSettings.from_config(cfg),
            "train_size": cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else (1, 1),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        """Where images are moved to."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """Compute losses in training, label maps otherwise.

        Args:
            batched_inputs: one dict per image:

                * ``image``: (3, H, W) uint8 or float tensor, 0 to 255, channels as in
                  ``INPUT.FORMAT``.
                * ``sem_seg`` (training): (H, W) integer tensor of indices into the training
                  vocabulary, its ``ignore_index`` elsewhere.
                * ``novel_mask`` (training, trusty target ``novel``): (H, W) bool.
                * ``height``, ``width`` (inference): size of the result, default the image's.
                * ``vocabulary`` (inference): `Vocabulary` or registered dataset name, default
                  ``self.vocabulary``; the same for the whole batch.

        Returns:
            Training: ``loss_mask``, ``loss_dice`` and ``loss_trusty``, weighted scalars.
            Inference: one dict per image at its (height, width), as `inference` says.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images, sizes = self.preprocess_images(batched_inputs)
        targets = self.preprocess_targets(batched_inputs, images.shape[-2:], sizes)
        class_embed = self.text_bank(self.train_vocabulary)
        features = self.backbone(images)
        class_logits, trusty_logits = self.sem_seg_head.layers(features, class_embed)
        _log_scalar("pixel_accuracy", pixel_accuracy(class_logits, targets))
        return self.sem_seg_head.losses(class_logits, trusty_logits, targets)

    def preprocess_images(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalise and pad (with 0, right and bottom) to one size that the backbone divides.

        Returns:
            (N, 3, H, W) float32 and the (height, width) of each image inside it.
        """
        images = [self._normalise(item["image"]) for item in batched_inputs]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        height = self._divisible(max(self.train_size[0], *(size[0] for size in sizes)))
        width = self._divisible(max(self.train_size[1], *(size[1] for size in sizes)))
        return torch.stack([_pad(image, height, width, 0.0) for image in images]), sizes

    def preprocess_targets(
        self,
        batched_inputs: list[dict[str, Any]],
        padded_size: Sequence[int],
        sizes: list[tuple[int, int]],
    ) -> SegTargets:
        """Pad the labels like the images and derive the target of the trusty token.

        Raises:
            DatasetError: the token is trained on unseen pixels and an input has no mask of them.
        """
        ignore = self.train_vocabulary.ignore_index
        labels = torch.stack(
            [_pad(x["sem_seg"].to(self.device), *padded_size, ignore) for x in batched_inputs]
        )
        valid = torch.zeros(labels.shape, dtype=torch.bool, device=self.device)
        for mask, (rows, columns) in zip(valid, sizes, strict=True):
            mask[:rows, :columns] = True
        if self.trusty_target == "seen":
            trusty = self.trusted_labels[labels.long()]
        elif all("novel_mask" in item for item in batched_inputs):
            masks = [item["novel_mask"].to(self.device) for item in batched_inputs]
            trusty = torch.stack([_pad(mask, *padded_size, False) for mask in masks])
        else:
            raise DatasetError(
                f"{batched_inputs[0].get('file_name', 'training input')}: found no novel_mask, "
                "which MODEL.TAGCLIP.TRUSTY.TARGET novel needs; use ZeroShotDatasetMapper"
            )
        return SegTargets(labels=labels, valid=valid, trusty=trusty, ignore=ignore)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Segment images.

        Returns:
            One dict per image, tensors on the model's device at the image's (height, width):

            * OUTPUT ``labels``: ``sem_seg_labels`` (H, W) int16 (int32 above 32767 classes),
              indices into the vocabulary, and ``sem_seg_scores`` (H, W) half, their scores.
            * OUTPUT ``scores``: ``sem_seg`` (K, H, W) float32.
            * ``trusty`` (H, W) half, P(pixel belongs to a seen class), if there is a token.
        """
        vocabulary = self.resolve_vocabulary(batched_inputs)
        results = []
        for item in batched_inputs:
            fusion = self.encode(item["image"], vocabulary)
            height, width = item["image"].shape[-2:]
            size = (item.get("height", height), item.get("width", width))
            labels = self.inference_settings.output == "labels"
            results.append(fusion.labels(size) if labels else fusion.scores(size))
        return results

    @torch.no_grad()
    def encode(self, image: Tensor, vocabulary: Vocabulary) -> ScoreFusion:
        """Run the networks on one image; what is left to do is cheap and depends on the gate.

        Args:
            image: (3, h, w) uint8 or float, 0 to 255.
            vocabulary: K classes with seen and unseen decided.

        Returns:
            The low-resolution logits of its windows, ready for labels or scores of any size.
        """
        image = self._normalise(image)
        grid = self.inference_settings.grid(*image.shape[-2:])
        logits, trusty_logits = self._window_logits(image, grid, self.text_bank(vocabulary))
        return ScoreFusion(
            class_logits=logits,
            trusty_logits=trusty_logits,
            seen_mask=torch.from_numpy(vocabulary.seen_mask).to(self.device),
            grid=grid,
            padded_size=self._padded_window(grid),
            gate=self.gate,
            trusty_map=partial(trusty_probability, target=self.trusty_target),
            workspace_mib=self.inference_settings.workspace_mib,
        )

    def resolve_vocabulary(self, batched_inputs: list[dict[str, Any]]) -> Vocabulary:
        """Return the one vocabulary that a batch asks for, with seen and unseen decided.

        Raises:
            VocabularyError: the inputs of the batch ask for different vocabularies.
        """
        asked = [item.get("vocabulary", self.vocabulary) for item in batched_inputs]
        # The split in a dataset's own json says nothing about this model's training.
        asked = [
            replace(Vocabulary.from_metadata(v), seen=None) if isinstance(v, str) else v
            for v in asked
        ]
        if any(other != asked[0] for other in asked):
            raise VocabularyError(
                f"batch of {len(asked)} inputs: found several vocabularies "
                f"({', '.join(sorted({v.name for v in asked}))}), expected one; "
                "evaluate each dataset on its own"
            )
        return resolve_seen(asked[0], self.train_vocabulary, self.unknown_classes)

    def _window_logits(
        self, image: Tensor, grid: WindowGrid, class_embed: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run backbone and head on all windows: (W, K, h, w) and (W, 1, h, w) float32 logits."""
        height, width = self._padded_window(grid)
        windows = [_pad(image[:, rows, columns], height, width, 0.0) for rows, columns in grid]
        class_logits, trusty_logits = [], []
        step = self._windows_per_batch()
        for start in range(0, len(windows), step):
            features = self.backbone(torch.stack(windows[start : start + step]))
            (logits, trusty), _ = self.sem_seg_head(features, class_embed)
            class_logits.append(logits.float())
            if trusty is not None:
                trusty_logits.append(trusty.float())
        return torch.cat(class_logits), torch.cat(trusty_logits) if trusty_logits else None

    def _windows_per_batch(self) -> int:
        # Matrix products on a CPU round differently for every batch size, and larger batches
        # gain nothing there: one window at a time keeps results independent of WINDOW_BATCH.
        return 1 if self.device.type == "cpu" else self.inference_settings.window_batch

    def _padded_window(self, grid: WindowGrid) -> tuple[int, int]:
        return self._divisible(grid.window_height), self._divisible(grid.window_width)

    def _divisible(self, length: int) -> int:
        divisor = max(self.backbone.size_divisibility, 1)
        return -(-length // divisor) * divisor

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device).float() - self.pixel_mean) / self.pixel_std


def _pad(image: Tensor, height: int, width: int, value: float) -> Tensor:
    """Pad (..., h, w) with ``value`` at the right and bottom."""
    rows, columns = height - image.shape[-2], width - image.shape[-1]
    return F.pad(image, (0, columns, 0, rows), value=value) if rows or columns else image


def _log_scalar(name: str, value: Tensor) -> None:
    """Log into the trainer's storage; a model called without a trainer has none."""
    try:
        storage = get_event_storage()
    except AssertionError:
        return
    storage.put_scalar(name, float(value))
