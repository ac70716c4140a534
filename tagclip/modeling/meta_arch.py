"""TagCLIP: from images and a vocabulary to losses or label maps."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.utils.logger import log_first_n
from torch import Tensor, nn

from tagclip.config.checks import check_config
from tagclip.data.protocol import Protocol, requested_vocabulary, resolve_seen
from tagclip.data.read_ahead import BUDGET
from tagclip.errors import ConfigError
from tagclip.modeling.batching import stack_novel_masks, stack_padded, valid_mask
from tagclip.modeling.clip.preprocessing import resolve_pixels
from tagclip.modeling.clip.text_bank import TextBank, class_maximum
from tagclip.modeling.heads.class_gaussians import namesakes, same_classes
from tagclip.modeling.heads.relative_trusty import (
    Decoder,
    PatchVectors,
    RelativeMap,
    RelativeTrusty,
)
from tagclip.modeling.inference.fusion import InferenceSettings, ScoreFusion
from tagclip.modeling.inference.gate import Gate
from tagclip.modeling.inference.windows import (
    ViewLogits,
    WindowedImage,
    WindowPlan,
    window_logits,
)
from tagclip.modeling.losses.seg_loss import SegTargets, pixel_accuracy
from tagclip.modeling.scalars import log_scalars
from tagclip.modeling.self_training import SelfTraining
from tagclip.structures.provenance import Provenance
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import format_names
from tagclip.utils.compiling import check_compiler

__all__ = ["TagCLIP"]


class _Queries(NamedTuple):
    """What the networks are asked.

    Attributes:
        embed: (P, D) class vectors: of the asked classes and, where the map compares, of those
            behind them; with MODEL.CLIP.SYNONYMS max one per prompt name.
        prompt_rows: see `TextBank.prompt_rows`.
        relative_map: None where the trusty map is of another kind.
    """

    embed: Tensor
    prompt_rows: Tensor | None
    relative_map: RelativeMap | None


@META_ARCH_REGISTRY.register()
class TagCLIP(nn.Module):
    """Zero-shot semantic segmentation with trusty-token-guided CLIP (arXiv 2304.07547).

    Training, evaluation, cross-dataset and free-text inference differ only in the
    `Vocabulary` that is asked.

    Attributes:
        provenance: whose masks it has learned from; unknown until weights are loaded or trained.
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
        trusty_target: str | None,
        gate: Gate,
        inference: InferenceSettings,
        train_size: Sequence[int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        self_training: SelfTraining | None = None,
    ) -> None:
        """Assemble built parts.

        Args:
            backbone: images (N, 3, H, W) -> ``clip_dense`` and ``clip_global``.
            sem_seg_head: features and class vectors -> low-resolution logits or losses.
            text_bank: `Vocabulary` -> (K, D) class vectors, or one per prompt name.
            train_vocabulary: the classes that training labels index.
            vocabulary: the classes asked when an input brings no ``vocabulary``.
            unknown_classes: ``match``, ``seen`` or ``unseen``, for vocabularies without a split.
            trusty_target: ``seen`` or ``novel``, what the trusty token is trained on; None
                without a token.
            gate: how the trusty map and the seen bias enter the scores.
            inference: windows, memory and output form.
            train_size: (height, width) in pixels to which training batches are padded at least.
            pixel_mean: per channel, in units of the uint8 image.
            pixel_std: per channel, in units of the uint8 image.
            self_training: writes pseudo-labels into the training targets; None: no pseudo-labels.

        Raises:
            ConfigError: the trusty map needs plain CLIP's patches, which the backbone cannot give,
                or the test for none of the classes a map that there is not.
        """
        super().__init__()
        self.backbone, self.sem_seg_head, self.text_bank = backbone, sem_seg_head, text_bank
        if self.relative_trusty is not None and not hasattr(backbone, "plain"):
            raise ConfigError(
                "MODEL.TAGCLIP.TRUSTY.KIND: found relative with the image tower "
                f"{type(backbone).__name__}, expected CLIPViT, which has plain CLIP's patches, "
                "too; take token or conv, or another MODEL.CLIP.NAME"
            )
        if inference.background == "auto" and self.relative_trusty is None:
            raise ConfigError(
                "MODEL.TAGCLIP.TEST.BACKGROUND: found auto in a model without a trusty map of "
                "TRUSTY.KIND relative, which knows what no class looks like; expected threshold, "
                "with BACKGROUND_THRESHOLD, or a model that was trained with such a map"
            )
        self.train_vocabulary, self.vocabulary = train_vocabulary, vocabulary
        self.unknown_classes, self.trusty_target = unknown_classes, trusty_target
        self.gate, self.inference_settings = gate, inference
        self.self_training = self_training
        self.provenance = Provenance(is_complete=False)
        # What results say of the training of the weights, beside that.
        self.training_record: dict[str, Any] = {}
        self._known_queries: tuple[Any, _Queries | None] = (None, None)
        self.train_size = tuple(train_size)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        ignore = train_vocabulary.ignore_index
        trusted = torch.zeros(max(ignore, len(train_vocabulary)) + 1, dtype=torch.bool)
        trusted[: len(train_vocabulary)] = torch.from_numpy(train_vocabulary.seen_mask)
        self.register_buffer("trusted_labels", trusted, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_config(cfg)
        cfg = resolve_pixels(cfg)
        if cfg.MODEL.COMPILE:
            check_compiler(cfg.MODEL.DEVICE)
        backbone = build_backbone(cfg)
        test, trusty = cfg.MODEL.TAGCLIP.TEST, cfg.MODEL.TAGCLIP.TRUSTY
        protocol = Protocol(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "text_bank": TextBank(cfg),
            "train_vocabulary": protocol.training,
            "vocabulary": protocol.asked(cfg.DATASETS.TEST[0])
            if cfg.DATASETS.TEST
            else protocol.training,
            "unknown_classes": test.UNKNOWN_CLASSES,
            "trusty_target": trusty.TARGET if trusty.ENABLED else None,
            "gate": Gate.from_config(cfg),
            "inference": InferenceSettings.from_config(cfg),
            "train_size": cfg.INPUT.CROP.SIZE if cfg.INPUT.CROP.ENABLED else (1, 1),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "self_training": SelfTraining.from_config(cfg),
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
                * ``novel_mask`` (training, trusty target or pseudo-label region ``novel``):
                  (H, W) bool.
                * ``padded_size``, ``part`` (training, optional): least (height, width) of the
                  padded batch, and the number of this part of it, from 0.
                * ``height``, ``width`` (inference): size of the result, default the image's.
                * ``views`` (inference): dicts with ``image`` and ``mirrored`` instead of ``image``,
                  whose scores are averaged.
                * ``vocabulary`` (inference): `Vocabulary` or registered dataset name, default
                  ``self.vocabulary``; the same for the whole batch.

        Returns:
            Training: ``loss_mask``, ``loss_dice`` and ``loss_trusty``, weighted scalars, as
            `Losses`.
            Inference: one dict per image at its (height, width), as `inference` says.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images, sizes = self.preprocess_images(batched_inputs)
        targets = self.preprocess_targets(batched_inputs, images.shape[-2:], sizes)
        class_embed = self.text_bank(self.train_vocabulary)
        prompt_rows = self.text_bank.prompt_rows(self.train_vocabulary)
        features = self.backbone(images)
        class_logits, trusty_logits = self.sem_seg_head.layers(features, class_embed)
        class_logits = class_maximum(class_logits, prompt_rows)
        accuracy, centres = pixel_accuracy(class_logits, targets)
        log_scalars({"pixel_accuracy": accuracy}, centres)
        if self.self_training is not None:
            targets = self.self_training.pseudo_label(
                class_logits, trusty_logits, targets, batched_inputs, self.train_vocabulary
            )
        return self.sem_seg_head.losses(features, class_logits, trusty_logits, targets)

    def preprocess_images(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalise and pad (with 0, right and bottom) to one size that the backbone divides.

        Args:
            batched_inputs: see `forward`.

        Returns:
            (N, 3, H, W) float32 and the (height, width) of each image inside it.
        """
        images = [self._normalise(item["image"]) for item in batched_inputs]
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        least = (item["padded_size"] for item in batched_inputs if "padded_size" in item)
        padded = map(max, zip(self.train_size, *sizes, *least, strict=True))
        return stack_padded(images, tuple(map(self._divisible, padded)), 0.0), sizes

    def preprocess_targets(
        self,
        batched_inputs: list[dict[str, Any]],
        padded_size: Sequence[int],
        sizes: list[tuple[int, int]],
    ) -> SegTargets:
        """Pad the labels like the images and derive the target of the trusty token, if any.

        Raises:
            DatasetError: the token is trained on unseen pixels and an input has no mask of them.
        """
        ignore = self.train_vocabulary.ignore_index
        labels = [item["sem_seg"].to(self.device) for item in batched_inputs]
        labels = stack_padded(labels, padded_size, ignore)
        trusty = None
        if self.trusty_target == "seen":
            trusty = self.trusted_labels[labels.long()]
        elif self.trusty_target == "novel":
            trusty = stack_novel_masks(batched_inputs, padded_size, self.device)
        valid = valid_mask(sizes, padded_size, self.device)
        return SegTargets(
            labels=labels,
            valid=valid,
            trusty=trusty,
            ignore=ignore,
            part=batched_inputs[0].get("part", 0),
        )

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segment images.

        Returns:
            One dict per image, tensors on the model's device at the image's (height, width):

            * OUTPUT ``labels``: ``sem_seg_labels`` (H, W) int16 (int32 above 32767 classes),
                indices into the vocabulary, and ``sem_seg_scores`` (H, W) half, their scores;
                the label is -1 where TEST.BACKGROUND says so.
            * OUTPUT ``scores``: ``sem_seg`` (K, H, W) float32.
            * ``trusty`` (H, W) half, P(pixel belongs to a seen class), if there is a token.
            * TEST.SAVE_LOGITS: ``logits``, the `ScoreFusion` that all of these come from.
        """
        vocabulary, settings = self.resolve_vocabulary(batched_inputs), self.inference_settings
        results = []
        fusions = self.encode_each(batched_inputs, vocabulary)
        for item, fusion in zip(batched_inputs, fusions, strict=True):
            height, width = item["image"].shape[-2:]
            size = (item.get("height", height), item.get("width", width))
            results.append(settings.result(fusion, size))
        return results

    def encode(self, item: dict[str, Any], vocabulary: Vocabulary) -> ScoreFusion:
        """Run the networks on one input; what is left to do is cheap and depends on the gate.

        Args:
            item: ``image`` (3, h, w) uint8 or float, 0 to 255, or ``views``, see `forward`.
            vocabulary: K classes with seen and unseen decided.

        Returns:
            The low-resolution logits of its views, ready for labels or scores of any size.
        """
        return next(self.encode_each([item], vocabulary))

    @torch.no_grad()
    def encode_each(
        self, items: Iterable[dict[str, Any]], vocabulary: Vocabulary, budget: int = BUDGET
    ) -> Iterator[ScoreFusion]:
        """Do what `encode` does for many inputs, whose windows fill batches of WINDOW_BATCH.

        On a CPU one window at a time, and no input waits: results have the bits of single ones.

        Args:
            items: inputs of `encode`; no more are taken than full batches need.
            vocabulary: K classes with seen and unseen decided.
            budget: bytes of inputs and logits that wait for windows of equal size; a single input
                may have more.

        Yields:
            What `encode` returns, in order.
        """
        views_of: deque[int] = deque()

        def images() -> Iterator[WindowedImage]:
            for item in items:
                views = item.get("views", [item])
                views_of.append(len(views))
                yield from (self._windowed(view, len(vocabulary)) for view in views)

        networks = partial(self._networks, *self._queries(vocabulary))
        seen_mask = torch.from_numpy(vocabulary.seen_mask).to(self.device)
        found: list[ViewLogits] = []
        for view in window_logits(images(), networks, self._windows_per_batch(), budget):
            found.append(view)
            if len(found) == views_of[0]:
                views_of.popleft()
                yield ScoreFusion(
                    views=tuple(found),
                    seen_mask=seen_mask,
                    gate=self.gate,
                    trusty_target=self.trusty_target,
                    workspace_mib=self.inference_settings.workspace_mib,
                )
                found = []

    def resolve_vocabulary(self, batched_inputs: list[dict[str, Any]]) -> Vocabulary:
        """Return the one vocabulary that a batch asks for, with seen and unseen decided.

        Raises:
            VocabularyError: the inputs of the batch ask for different vocabularies.
        """
        asked = requested_vocabulary(batched_inputs, self.vocabulary)
        return resolve_seen(asked, self.train_vocabulary, self.unknown_classes)

    def competitors(self, vocabulary: Vocabulary) -> Vocabulary | None:
        """Return what else may be on an image: classes with masks that are not asked.

        Args:
            vocabulary: the asked classes, with seen and unseen decided.

        Returns:
            None if there is no such class, or TEST.BACKGROUND does not ask for them.
        """
        if self.inference_settings.background != "auto":
            return None
        known, others = self._others(vocabulary)
        return known.with_seen(others.tolist()).restrict("seen") if others.any() else None

    @torch.no_grad()
    def _others(self, vocabulary: Vocabulary) -> tuple[Vocabulary, Tensor]:
        """Classes with masks, and (S,) bool which are not asked; who may be so is named."""
        known = self.train_vocabulary.restrict("seen")
        trained, asked = map(self.text_bank.class_vectors, (known, vocabulary))
        taken = set().union(*(entry.keys for entry in vocabulary.classes))
        free = torch.tensor([not entry.keys & taken for entry in known.classes])
        same = same_classes(trained, asked)
        others = ~same.any(1) & free.to(trained.device)
        unseen = torch.from_numpy(~vocabulary.seen_mask).to(others.device)
        if wrong := (same.any(0) & unseen).nonzero()[:, 0].tolist():
            log_first_n(
                logging.WARNING,
                "These classes are called unseen, but their masks trained the model: "
                f"{format_names(vocabulary.names[k] for k in wrong)}; a relative trusty map takes "
                "them for usual and finds unseen ones badly: call them seen "
                "(MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES match)",
                key="message",
                name=__name__,
            )
        found = (namesakes(trained, asked) & others & unseen[:, None]).nonzero().tolist()
        pairs = [f"{vocabulary.names[k]!r} ({known.names[s]!r})" for k, s in found]
        if pairs:
            log_first_n(
                logging.INFO,
                "These words count as unseen and are close to classes of the training, in brackets:"
                f" {', '.join(pairs)}; where both are one thing, ask for that of the training",
                key="message",
                name=__name__,
            )
        return known, others

    def _networks(
        self,
        class_embed: Tensor,
        prompt_rows: Tensor | None,
        relative_map: RelativeMap | None,
        windows: Sequence[Tensor],
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """N windows (3, h, w), padded to a size -> what `window_logits` says, float32."""
        margins = None
        images = stack_padded([self._normalise(window) for window in windows], size, 0.0)
        # TEST.DTYPE says what is in half precision, whatever surrounds the call.
        with torch.autocast(self.device.type, enabled=False):
            features = self.backbone(images)
            (logits, trusty), _ = self.sem_seg_head(features, class_embed)
            logits = class_maximum(logits, prompt_rows).float()
            if relative_map is not None:
                vectors = self.patch_vectors(images, features, with_plain=relative_map.compares)
                trusty, margins = relative_map(vectors, logits)
                logits = logits[:, : relative_map.asked].contiguous()
        return logits, None if trusty is None else trusty.float(), margins

    @property
    def relative_trusty(self) -> RelativeTrusty | None:
        """What a trusty map of kind ``relative`` is made of; None with another kind, or without."""
        return getattr(self.sem_seg_head, "trusty_relative", None)

    def patch_vectors(
        self, images: Tensor, features: dict[str, Tensor], with_plain: bool = True
    ) -> PatchVectors:
        """Return what a trusty map of kind ``relative`` compares.

        Args:
            images: (N, 3, H, W) normalised.
            features: what the backbone makes of them.
            with_plain: whether to run the tower a second time, without prompts.
        """
        plain = self.backbone.plain(images) if with_plain else None
        return PatchVectors(features["clip_dense"], plain, features["clip_global"])

    def decoder(self, vocabulary: Vocabulary) -> Decoder:
        """Return what makes class logits (N, K, h, w) of patch and image vectors."""
        return self._decoder(self.text_bank(vocabulary), self.text_bank.prompt_rows(vocabulary))

    def _decoder(self, embed: Tensor, rows: Tensor | None) -> Decoder:
        def decode(dense: Tensor, whole: Tensor) -> Tensor:
            features = {"clip_dense": dense, "clip_global": whole}
            return class_maximum(self.sem_seg_head.layers(features, embed)[0], rows).float()

        return decode

    def relative_map(self, vocabulary: Vocabulary) -> RelativeMap | None:
        """Return the relative trusty map of a list of classes, made once.

        It compares the asked classes and, behind them, the classes with masks that are not among
        them: their patches are among those that it takes for usual.

        Args:
            vocabulary: the asked classes, with seen and unseen decided.

        Returns:
            None where the trusty map is of another kind.
        """
        return self._queries(vocabulary).relative_map

    def _queries(self, vocabulary: Vocabulary) -> _Queries:
        """What the networks are asked for a list of classes; where there is a map, made once."""
        bank, trusty = self.text_bank, self.relative_trusty
        own = _Queries(bank(vocabulary), bank.prompt_rows(vocabulary), None)
        if trusty is None:
            return own
        key = bank.fingerprint(vocabulary), vocabulary.seen_mask.tobytes(), trusty.fits, self.device
        # A name of its own: another thread may ask for other words at any time.
        known_key, found = self._known_queries
        if known_key != key:
            known, others = self._others(vocabulary)
            embed, rows = bank.with_part(vocabulary, known, others)
            classes = [bank.class_vectors(vocabulary), bank.class_vectors(known)[others]]
            seen = torch.from_numpy(vocabulary.seen_mask).to(self.device)
            relative_map = trusty.map_for(
                bank.class_vectors(self.train_vocabulary),
                torch.cat(classes),
                torch.cat([seen, torch.ones_like(others)[others]]),
                self._decoder(embed, rows),
                asked=len(vocabulary),
            )
            found = own._replace(relative_map=relative_map)
            if relative_map.compares:
                found = _Queries(embed, rows, relative_map)
            # One at a time: whoever asks for others in turn pays a few decoders for it.
            self._known_queries = key, found
        return found

    def _windows_per_batch(self) -> int:
        # Matrix products on a CPU round differently for every batch size, and larger batches
        # gain nothing there: one window at a time keeps results independent of WINDOW_BATCH.
        return 1 if self.device.type == "cpu" else self.inference_settings.window_batch

    def _windowed(self, view: dict[str, Any], classes: int) -> WindowedImage:
        pixels = view["image"]
        plan = self.window_plan(*pixels.shape[-2:], classes)
        mirrored = view.get("mirrored", False)
        return WindowedImage(pixels, plan.grid, plan.padded_size, mirrored, plan.logits_nbytes)

    def window_plan(self, height: int, width: int, classes: int) -> WindowPlan:
        """Say how a view of this size in pixels is cut, and what its logits will take."""
        grid = self.inference_settings.grid(height, width)
        padded = self._divisible(grid.window_height), self._divisible(grid.window_width)
        patches = len(grid) * (padded[0] // self._divisor) * (padded[1] // self._divisor)
        # float32 of the classes, the trusty map and, where there are any, the margins.
        planes = classes + 1 + (self.inference_settings.background == "auto")
        return WindowPlan(grid, padded, logits_nbytes=4 * planes * patches)

    @property
    def _divisor(self) -> int:
        return max(self.backbone.size_divisibility, 1)

    def _divisible(self, length: int) -> int:
        return -(-length // self._divisor) * self._divisor

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device).float() - self.pixel_mean) / self.pixel_std
