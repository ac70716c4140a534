"""What a config costs, from shapes alone: parameters, multiply-accumulates, activation memory.

The model is built from PyTorch's fake tensors, which have a shape and a type but no values: any
size takes seconds and little memory, and no weights are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tagclip.modeling.losses.seg_loss import SegTargets
from tagclip.structures.vocabulary import Vocabulary

__all__ = ["ActivationMemory", "ModelAnalysis", "ParameterCount", "TextCost"]


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of one module, such as ``backbone.blocks``."""

    module: str
    trainable: int
    frozen: int


@dataclass(frozen=True)
class TextCost:
    """What the text tower does once for a vocabulary.

    Attributes:
        prompts: texts that are encoded, templates times distinct names.
        tokens: length of the longest, start and end token included.
        macs: multiply-accumulates of all, each batch cut to its longest prompt.
    """

    prompts: int
    tokens: int
    macs: int


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes that autograd keeps between forward and backward pass, parameters left out.

    Attributes:
        backbone, head, loss: for each image.
        fixed: for each step, whatever the batch: copies of weights under autocast.
    """

    backbone: int
    head: int
    loss: int
    fixed: int


class ModelAnalysis:
    """A model of shapes only, and what can be counted on it."""

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model.

        Args:
            cfg: see `tagclip.config`; its CLIP weights, device and caches are not looked at.

        Raises:
            TagCLIPError: a key, a dataset or a vocabulary is not in order.
        """
        cfg = cfg.clone()
        cfg.defrost()
        clip = cfg.MODEL.CLIP
        clip.PRETRAINED, clip.SHA256, clip.TEXT_CACHE, cfg.MODEL.DEVICE = "", "", "", "cpu"
        cfg.MODEL.COMPILE = False
        self._cfg = cfg
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fake():
            # Not build_model: fake parameters cannot be moved to a device.
            self.model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)

    @contextmanager
    def _fake(self) -> Iterator[None]:
        """Compute with fake tensors."""
        with warnings.catch_warnings(), self._mode, _ZeroValues():
            # CLIPViT's cache of position tables asks for addresses; equal ones do no harm here.
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            yield

    @property
    def train_size(self) -> tuple[int, int]:
        """(height, width) of a training image in pixels, whole patches."""
        crop, sides = self._cfg.INPUT.CROP, self._cfg.INPUT.MIN_SIZE_TRAIN
        height, width = crop.SIZE if crop.ENABLED else (max(sides), max(sides))
        return self._whole_patches(height), self._whole_patches(width)

    def windows(self, height: int, width: int) -> tuple[int, tuple[int, int]]:
        """Number of windows of a test image, and their (height, width), whole patches."""
        grid = self.model.inference_settings.grid(height, width)
        size = self._whole_patches(grid.window_height), self._whole_patches(grid.window_width)
        return len(grid), size

    def _whole_patches(self, length: int) -> int:
        divisor = max(self.model.backbone.size_divisibility, 1)
        return -(-length // divisor) * divisor

    def parameters(self) -> list[ParameterCount]:
        """Count the parameters of every module, two levels deep."""
        counts: dict[str, list[int]] = {}
        for name, parameter in self.model.named_parameters():
            row = counts.setdefault(".".join(name.split(".")[:2]), [0, 0])
            row[0 if parameter.requires_grad else 1] += parameter.numel()
        return [ParameterCount(module, *row) for module, row in counts.items()]

    def text_parameters(self) -> int:
        """Parameters of the text tower, which is frozen and no part of the model."""
        with self._fake():
            tower = self.model.text_bank.source.text_tower()
        return sum(parameter.numel() for parameter in tower.parameters())

    def forward_macs(self, num_classes: int, size: Sequence[int]) -> dict[str, int]:
        """Count the multiply-accumulates of backbone and head for one image or window.

        Counts matrix products and convolutions, as papers do; no normalisation, activation,
        softmax or resizing.

        Args:
            num_classes: classes asked, K.
            size: (height, width) in pixels, whole patches.

        Returns:
            By part: ``backbone.<child>`` and ``sem_seg_head.<child>`` of every child module;
            ``backbone`` and ``sem_seg_head`` are what belongs to no child; ``backbone.plain`` the
            second pass of the tower, for a trusty map of kind ``relative``.
        """
        model = self.model.eval()
        with self._fake():
            images = torch.empty(1, 3, *size)
            class_embed = torch.empty(num_classes, self._embed_dim)
        features, backbone = self._count_parts(model.backbone, images)
        _, head = self._count_parts(model.sem_seg_head, features, class_embed)
        parts = {f"backbone{child}": macs for child, macs in backbone.items()}
        if model.relative_trusty is not None:
            _, plain = self._count(model.backbone.plain, images)
            parts["backbone.plain"] = plain.get_total_flops() // 2
        return parts | {f"sem_seg_head{child}": macs for child, macs in head.items()}

    @property
    def _embed_dim(self) -> int:
        return self.model.backbone.output_shape()["clip_dense"].channels

    def _count_parts(self, module: nn.Module, *inputs: Any) -> tuple[Any, dict[str, int]]:
        """Run a module; multiply-accumulates of its children ".name" and of itself ""."""
        output, counter = self._count(module, *inputs)
        by_name = {n: sum(ops.values()) // 2 for n, ops in counter.get_flop_counts().items()}
        root = type(module).__name__
        parts = {
            f".{name}": _macs_below(child, f"{root}.{name}", by_name)
            for name, child in module.named_children()
        }
        total = counter.get_total_flops() // 2
        return output, {"": total - sum(parts.values())} | parts

    def _count(self, function: Callable[..., Any], *inputs: Any) -> tuple[Any, FlopCounterMode]:
        counter = FlopCounterMode(display=False)
        with self._fake(), torch.no_grad(), _unfused_attention(), counter:
            return function(*inputs), counter

    def text(self, vocabulary: Vocabulary) -> TextCost:
        """Count what encoding the class vectors of a vocabulary takes."""
        bank = self.model.text_bank
        names = dict.fromkeys(name for prompts in vocabulary.prompts for name in prompts)
        texts = [template.replace("{}", name) for name in names for template in bank.templates]
        limit = bank.source.context_length
        with self._fake():
            tower = bank.source.text_tower()
        tokens = tower.length([ids[:limit] for ids in bank.source.tokenize(texts)])
        _, counter = self._count(bank, vocabulary)
        return TextCost(len(texts), tokens, counter.get_total_flops() // 2)

    def macs_per_text(self) -> int:
        """Multiply-accumulates of the text tower for one prompt of full context length."""
        source = self.model.text_bank.source
        with self._fake():
            tower = source.text_tower()
            ids = torch.zeros(1, source.context_length, dtype=torch.long)
        _, counter = self._count(tower, ids)
        return counter.get_total_flops() // 2

    def activations(self) -> ActivationMemory:
        """Measure, with saved-tensor hooks, what one training forward pass keeps.

        The attention kernels are those of a CPU, which stores the decoder's attention weights
        where dropout acts on them; a GPU's do not.
        """
        # Not 1: what is a copy in any other batch is a view there.
        two, three = self._saved_by_networks(2), self._saved_by_networks(3)
        backbone, head = (b - a for a, b in zip(two, three, strict=True))
        fixed = sum(two) - 2 * (backbone + head)
        return ActivationMemory(backbone, head, self._saved_by_loss(), fixed)

    def _saved_by_networks(self, batch: int) -> tuple[int, int]:
        model, amp = self.model.train(), self._cfg.SOLVER.AMP
        autocast = torch.autocast("cpu", getattr(torch, amp.DTYPE), enabled=amp.ENABLED)
        with self._fake(), autocast:
            images = torch.empty(batch, 3, *self.train_size)
            class_embed = torch.empty(len(model.train_vocabulary), self._embed_dim)
            with _saved_tensors(model) as saved:
                features = model.backbone(images)
                backbone = _bytes(saved)
                model.sem_seg_head.layers(features, class_embed)
        return backbone, _bytes(saved) - backbone

    def _saved_by_loss(self) -> int:
        """Bytes for one image. Real tensors: what the loss computes depends on the labels."""
        height, width = self.train_size
        patch = self.model.backbone.patch_size
        grid = height // patch, width // patch
        labels = torch.zeros(1, height, width, dtype=torch.uint8)
        logits = torch.zeros(1, len(self.model.train_vocabulary), *grid, requires_grad=True)
        trusty_logits = trusty = None
        if self.model.trusty_target is not None and self.model.relative_trusty is None:
            trusty_logits, trusty = torch.zeros(1, 1, *grid, requires_grad=True), labels.bool()
        targets = SegTargets(labels, torch.ones_like(labels, dtype=torch.bool), trusty, 255)
        features = {"clip_dense": torch.zeros(1, self._embed_dim, *grid)}
        with _saved_tensors(self.model) as saved:
            self.model.sem_seg_head.losses(features, logits, trusty_logits, targets)
        return _bytes(saved)


class _ZeroValues(TorchFunctionMode):
    """Fake tensors have no values; timm reads rates of dropped paths from some, which are no shape.

    They are read as zeros.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.Tensor.item:
            return 0.0
        if function is torch.Tensor.tolist:
            return [0.0] * len(args[0])
        return function(*args, **(kwargs or {}))


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Compute attention by matrix products: the counter overlooks some of the fused kernels."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _macs_below(module: nn.Module, name: str, counts: Mapping[str, int]) -> int:
    """Counts of a module, or of its children if only these were called."""
    if name in counts:
        return counts[name]
    children = module.named_children()
    return sum(_macs_below(child, f"{name}.{key}", counts) for key, child in children)


@contextmanager
def _saved_tensors(model: nn.Module) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Collect the storages that autograd keeps, each once, without those of parameters."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _bytes(storages: Mapping[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages.values())
