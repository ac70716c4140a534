"""A model as ONNX or TorchScript, words baked in or an input; all export-only code paths are here.

`tagclip export` writes the files, `tagclip run-onnx` runs one without torch.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.errors import ConfigError
from tagclip.modeling.backbone import CLIPViT
from tagclip.modeling.backbone.positions import resize_positions
from tagclip.modeling.clip.source import CLIPSource
from tagclip.modeling.clip.text_bank import class_maximum
from tagclip.modeling.inference.gate import trusty_probability
from tagclip.modeling.meta_arch import TagCLIP
from tagclip.structures.vocabulary import Vocabulary

__all__ = [
    "RUNNERS",
    "WindowModel",
    "class_inputs",
    "largest_difference",
    "require_onnx",
    "text_tower_to_onnx",
    "to_onnx",
    "to_torchscript",
]

# Understood by every runtime since 2023.
OPSET = 18
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of inputs and outputs.
_DIMENSIONS = {
    **dict.fromkeys(("images", "image"), "batch channels height width"),
    "class_vectors": "classes dim",
    "seen": "classes",
    "scores": "batch classes height width",
    **dict.fromkeys(("labels", "trusty"), "batch height width"),
    "tokens": "texts length",
    "vectors": "texts dim",
}
# protobuf's limit of one file is 2 GiB; the graph itself needs far less than the difference.
_MAX_ONNX_BYTES = 2**31 - 2**24


class WindowModel(nn.Module):
    """Windows -> final class scores, with bias and gate baked in, and mostly a vocabulary, too.

    A window is one of `WindowGrid`; scores of overlapping ones are averaged by
    whoever runs the exported file.
    """

    def __init__(
        self, model: TagCLIP, vocabulary: Vocabulary | None, size: tuple[int, int] | None = None
    ) -> None:
        """Take over the networks of a model and encode a vocabulary.

        Args:
            model: in evaluation mode, on the CPU; its parameters are shared.
            vocabulary: K classes with seen and unseen decided; None makes them inputs of `forward`.
            size: (height, width) of the windows in pixels, which bakes the position table; None
                leaves it open and resizes the table in the graph.

        Raises:
            ConfigError: the backbone is no `CLIPViT`, the trusty map compares classes, or classes
                that are an input would have several vectors each or a text tower that is not
                exported.
        """
        super().__init__()
        if not isinstance(model.backbone, CLIPViT):
            raise ConfigError(
                f"MODEL.BACKBONE.NAME: found {type(model.backbone).__name__}, expected CLIPViT, "
                "whose towers alone can be exported: those that tagclip towers calls ViT; train "
                "with such a MODEL.CLIP.NAME"
            )
        if model.relative_trusty is not None:
            raise ConfigError(
                "MODEL.TAGCLIP.TRUSTY.KIND: found relative, expected token or conv, whose maps "
                "alone are exported; train such a model, or set MODEL.TAGCLIP.TRUSTY.ENABLED False "
                "(and TEST.BACKGROUND threshold)"
            )
        bank = model.text_bank
        if vocabulary is None:
            _check_clip_text(bank.source)
        if vocabulary is None and bank.synonyms != "mean":
            raise ConfigError(
                f"MODEL.CLIP.SYNONYMS: found {bank.synonyms}, expected mean where words are an "
                "input, one vector per class; set it to mean, or bake the words in"
            )
        self.backbone, self.sem_seg_head = model.backbone.for_inference(), model.sem_seg_head
        self.gate, self.trusty_target = model.gate, model.trusty_target
        self.background_threshold = model.inference_settings.background_threshold
        self.size, self.patch_size = size, model.backbone.patch_size
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        with torch.no_grad():
            baked = (None,) * 3
            if vocabulary is not None:
                class_embed, seen_mask = (
                    torch.from_numpy(x) for x in class_inputs(model, vocabulary)
                )
                baked = class_embed, bank.prompt_rows(vocabulary), seen_mask
            for name, value in zip(("class_embed", "prompt_rows", "seen_mask"), baked, strict=True):
                self.register_buffer(name, value)
            positions = None if size is None else self._fixed_positions(size)
        self.register_buffer("positions", positions)
        self.eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of what `forward` takes, in order."""
        return ("images",) if self.seen_mask is not None else ("image", "class_vectors", "seen")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns, in order."""
        return ("scores", "labels") + (() if self.trusty_target is None else ("trusty",))

    def forward(
        self, images: Tensor, class_vectors: Tensor | None = None, seen: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Segment windows.

        Args:
            images: (N, 3, H, W) uint8, channels as in ``INPUT.FORMAT``, neither normalised nor
                padded.
            class_vectors: (K, D) float32 unit vectors of `TextBank`; None where they are baked in.
            seen: (K,) bool, which classes are seen; None where they are baked in.

        Returns:
            ``scores`` (N, K, H, W) float32, after bias and gate, at most 1; ``labels`` (N, H, W)
            int32, the first best class, -1 where its score is below
            MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD; ``trusty`` (N, H, W) float32, P(pixel belongs
            to a seen class), if there is a token.
        """
        prompt_rows = None
        if self.seen_mask is not None:
            class_vectors, prompt_rows, seen = self.class_embed, self.prompt_rows, self.seen_mask
        else:
            # Joined, so that a runtime refuses flags of another number, which it would repeat.
            joined = torch.cat([class_vectors, seen[:, None].float()], dim=1)
            class_vectors, seen = joined[:, :-1], joined[:, -1] > 0
        height, width = self.size or (images.shape[-2], images.shape[-1])
        rows, columns = (_ceil_div(side, self.patch_size) for side in (height, width))
        images = (images.float() - self.pixel_mean) / self.pixel_std
        # Enough for whole patches; the convolution leaves out what is too much.
        images = F.pad(images, (0, self.patch_size - 1, 0, self.patch_size - 1))
        positions = self._resized_positions(rows, columns) if self.size is None else self.positions
        features = self.backbone(images, positions)
        (class_logits, trusty_logits), _ = self.sem_seg_head(features, class_vectors)
        class_logits = class_maximum(class_logits, prompt_rows)

        def upsample(logits: Tensor) -> Tensor:
            padded = (rows * self.patch_size, columns * self.patch_size)
            full = F.interpolate(logits, padded, mode="bilinear", align_corners=False)
            return full[:, :, :height, :width]

        trusty = None
        if trusty_logits is not None:
            trusty = trusty_probability(upsample(trusty_logits), self.trusty_target)
        scores = self.gate(upsample(class_logits).sigmoid(), trusty, seen)
        outputs = (scores, self._labels(scores))
        return outputs if trusty is None else (*outputs, trusty[:, 0])

    def _labels(self, scores: Tensor) -> Tensor:
        labels = scores.argmax(dim=1).int()
        if not self.background_threshold:
            return labels
        return labels.masked_fill(scores.amax(dim=1) < self.background_threshold, -1)

    def _fixed_positions(self, size: Sequence[int]) -> Tensor:
        grid = (_ceil_div(size[0], self.patch_size), _ceil_div(size[1], self.patch_size))
        table, mode = self.backbone.positional_embedding.detach(), self.backbone.pos_embed_resize
        return resize_positions(table, self.backbone.grid_size, grid, mode).clone()

    def _resized_positions(self, rows: int, columns: int) -> Tensor:
        """`resize_positions` without its branches, which a graph cannot hold.

        At the table's own size the resize changes nothing. The branch for a grid of one column
        corrects an error of torch's antialiased resize, which only ``bicubic`` uses: there a
        TorchScript file needs windows wider than a patch. ONNX resizes rightly by itself.
        """
        table, mode = self.backbone.positional_embedding, self.backbone.pos_embed_resize
        patches = table[1:].T.unflatten(1, self.backbone.grid_size)[None]
        resized = F.interpolate(
            patches, (rows, columns), mode=mode, align_corners=False, antialias=mode == "bicubic"
        )
        return torch.cat([table[:1], resized[0].flatten(1).T])


def class_inputs(model: TagCLIP, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Return ``class_vectors`` and ``seen`` of `WindowModel.forward`.

    Args:
        model: on the CPU.
        vocabulary: K classes with seen and unseen decided.
    """
    with torch.no_grad():
        return model.text_bank(vocabulary).numpy().copy(), vocabulary.seen_mask


def _ceil_div(length: int, divisor: int) -> int:
    return (length + divisor - 1) // divisor


def to_torchscript(window_model: WindowModel) -> bytes:
    """Trace and freeze; the number of windows stays open.

    Returns:
        The file, a module that takes and returns what `WindowModel.forward` does. Without the
        debug records of torch, which hold the paths of the source files.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        # About numbers that are the same for every input: layers, heads, patch size.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(window_model, _example(window_model), check_trace=False)
        torch.jit.save(torch.jit.freeze(traced), buffer)
    stripped = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(stripped, "w") as target:
        for record in source.infolist():
            if not record.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(record.filename), source.read(record))
    return stripped.getvalue()


def to_onnx(window_model: WindowModel) -> bytes:
    """Export with torch's graph exporter; the numbers of windows and of classes stay open.

    Returns:
        The file, opset 18, inputs and outputs as `WindowModel` names them. Without what
        torch notes on nodes, which holds the paths of the source files.

    Raises:
        ConfigError: packages are missing, or the weights pass the 2 GiB of an ONNX file.
    """
    dynamic = {0: torch.export.Dim("batch")}
    if window_model.size is None:
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    classes = {0: torch.export.Dim("classes")}
    remedy = "--format torchscript" if window_model.seen_mask is not None else "--words baked"
    return _to_onnx(
        window_model,
        dict(zip(window_model.input_names, _example(window_model), strict=True)),
        window_model.output_names,
        (dynamic, classes, classes),
        remedy,
    )


def _check_clip_text(source: CLIPSource) -> None:
    if not source.has_clip_text:
        raise ConfigError(
            f"--words input: found {source.name}, whose text tower or tokenizer is not CLIP's own, "
            "expected such a one, which exported models bring along; use --words baked"
        )


def text_tower_to_onnx(source: CLIPSource) -> bytes:
    """Export CLIP's text tower; numbers and lengths of the texts stay open.

    Returns:
        The file: ``tokens`` (T, L) int64 from start to end token, padded with 0, at most the
        context length -> ``vectors`` (T, D) float32 of any length each.

    Raises:
        ConfigError: packages are missing, the weights pass the 2 GiB of an ONNX file, or texts are
            read in another way than CLIP's.
        CheckpointError: see `CLIPSource.text_tower`.
    """
    _check_clip_text(source)
    tokens = torch.tensor([[1, 3, 0, 0, 0], [1, 2, 2, 3, 0]])
    dynamic = {0: torch.export.Dim("texts"), 1: torch.export.Dim.DYNAMIC}
    tower = source.text_tower()
    return _to_onnx(tower, {"tokens": tokens}, ("vectors",), (dynamic,), "--words baked")


def _to_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    output_names: Sequence[str],
    dynamic_shapes: Sequence[dict],
    remedy: str,
) -> bytes:
    require_onnx()
    tensors = [*module.parameters(), *module.buffers()]
    half = {tensor.dtype for tensor in tensors} & {torch.bfloat16, torch.float16}
    if half:
        raise ConfigError(
            f"TEST.DTYPE: found {str(half.pop()).removeprefix('torch.')} with --format onnx, "
            "expected float32, as runtimes have no such matrix products on CPUs; set TEST.DTYPE "
            "float32 (with --int8 for speed), or use --format torchscript"
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > _MAX_ONNX_BYTES:
        raise ConfigError(
            f"--format onnx: found {size / 2**30:.1f} GiB of weights, expected less than 2, the "
            f"limit of one ONNX file; use {remedy}"
        )
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=output_names,
            dynamic_shapes=tuple(dynamic_shapes[: len(inputs)]),
            opset_version=OPSET,
            verbose=False,
        )
    model = program.model_proto
    del model.graph.value_info[:], model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.initializer):
        del item.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        # What is open has a name, instead of the exporter's formula.
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, _DIMENSIONS[value.name].split(), strict=True):
            if dim.dim_param:
                dim.dim_param = name
    return model.SerializeToString(deterministic=True)


def _example(window_model: WindowModel) -> tuple[Tensor, ...]:
    """Two windows; one would become a constant of the graph, and so would equal sides."""
    patch = window_model.patch_size
    height, width = window_model.size or (3 * patch, 4 * patch)
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    if window_model.seen_mask is not None:
        return (images,)
    dim = window_model.backbone.output_shape()["clip_dense"].channels
    return images, torch.ones(5, dim), torch.arange(5) > 2


def require_onnx() -> None:
    """Check the packages of the extra ``export``.

    Raises:
        ConfigError: one is missing; the message is the command that installs it.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format onnx: found no {', '.join(missing)}, expected the packages of the extra "
            f"export; run: pip install {' '.join(missing)}"
        )


def _torchscript_runner(content: bytes) -> Callable[..., list[np.ndarray]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        module = torch.jit.load(io.BytesIO(content))
    return lambda *inputs: [output.numpy() for output in module(*map(torch.from_numpy, inputs))]


def _onnx_runner(content: bytes) -> Callable[..., list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


# Format -> a function from the file's content to a function from inputs to outputs.
RUNNERS = {"torchscript": _torchscript_runner, "onnx": _onnx_runner}


def largest_difference(
    run: Callable[[np.ndarray], list[np.ndarray]],
    model: TagCLIP,
    vocabulary: Vocabulary,
    images: np.ndarray,
) -> float:
    """Compare an exported file with the model itself, not with `WindowModel`.

    Args:
        run: (N, 3, H, W) uint8 -> outputs, see `RUNNERS`.
        model: on the CPU.
        vocabulary: the one that was exported.
        images: the windows.

    Returns:
        Largest difference of the scores; infinite if some label is not the best class up to
        twice that difference.
    """
    model = copy.copy(model)
    settings = model.inference_settings
    model.inference_settings = replace(settings, mode="whole", background_threshold=0.0)
    fusions = [model.encode({"image": torch.from_numpy(image)}, vocabulary) for image in images]
    expected = np.stack([f.scores(images.shape[-2:])["sem_seg"].numpy() for f in fusions])
    scores, labels = run(images)[:2]
    difference = float(np.abs(scores - expected).max())
    best = expected.max(axis=1)
    chosen = np.take_along_axis(expected, labels.clip(0)[:, None], axis=1)[:, 0]
    other = (labels == -1) & (best < settings.background_threshold + difference)
    is_best = other | ((labels >= 0) & (best - chosen <= 2 * difference + 1e-6))
    return difference if is_best.all() else float("inf")
