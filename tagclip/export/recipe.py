"""The json beside an exported model: all that running it takes, and what it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagclip.errors import ConfigError
from tagclip.export.runtime.checked_recipe import FORMAT
from tagclip.modeling.clip.weights import file_sha256
from tagclip.modeling.inference.fusion import InferenceSettings
from tagclip.predictor import TagCLIPPredictor

__all__ = ["WORD_FILES", "export_recipe", "file_recipe", "window_recipe"]

# What encodes other words, and the vectors of the exported ones.
WORD_FILES = {"text_model": "text.onnx", "merges": "merges.txt.gz", "vectors": "vectors.npz"}
_OUTPUTS = {
    "scores": "float32 (batch, classes, height, width): after seen bias and gate, at most 1",
    "labels": "int32 (batch, height, width): index of the first best class; -1 where its score is "
    "below background_threshold",
    "trusty": "float32 (batch, height, width): P(pixel belongs to a seen class), 0 to 1",
}
_PIXELS = (
    "EXIF orientation applied, alpha dropped, 16-bit gray divided by 257 and rounded, other modes "
    "as Pillow converts them to RGB"
)
_RESIZE = (
    "scale = min(short_side / min(height, width), long_side / max(height, width)), new sides "
    "max(1, int(side * scale + 0.5)), by library and interpolation; short_side 0: no resize, "
    "long_side 0: no bound"
)
_TOKENS = (
    "tagclip.export.runtime.tokenizer on merges: start token, those of a template with the name in "
    "place of {}, end token; at most context_length, padded with 0"
)
_VECTOR = "unit vectors of all templates, their mean, made unit again"
_ORIGINS = (
    "multiples of the stride, the last window moved back to end with the image; size null: one "
    "window, the whole image"
)
_FUSION = (
    "mean of the scores of all windows that cover a pixel, bilinear resize (half-pixel centres, "
    "no antialiasing) to the size of the image, first best class"
)


def export_recipe(
    predictor: TagCLIPPredictor,
    size: tuple[int, int] | None,
    files: Mapping[str, tuple[bytes, float | None]],
    takes_words: bool = False,
) -> dict[str, Any]:
    """Describe exported files: numbers and text only, no paths.

    Args:
        predictor: with the vocabulary that was exported.
        size: (height, width) of the windows in pixels; None: any.
        files: name -> content and largest difference of a number from the model's, if it holds
            networks.
        takes_words: whether class vectors are an input.

    Raises:
        ConfigError: no runtime resizes images as the config says.
    """
    cfg, model, vocabulary = predictor.cfg, predictor.model, predictor.vocabulary
    if (cfg.INPUT.RESIZE, cfg.INPUT.INTERPOLATION) == ("cv2", "bicubic"):
        raise ConfigError(
            "INPUT.RESIZE: found cv2 with INPUT.INTERPOLATION bicubic, which no runtime of an "
            "export repeats, expected pil with it; export with INPUT.RESIZE pil"
        )
    gate, weights = model.gate, Path(cfg.MODEL.WEIGHTS)
    shape = "height, width" if size is None else f"{size[0]}, {size[1]}"
    inputs = {"images": f"uint8 (batch, 3, {shape})"}
    if takes_words:
        dim = model.text_bank(vocabulary).shape[1]
        inputs = {
            "image": inputs["images"],
            "class_vectors": f"float32 (classes, {dim}): of length 1",
            "seen": "bool (classes): whether training has seen the class",
        }
    return {
        "format": FORMAT,
        "files": {
            name: file_recipe(content) | {"largest_difference": difference}
            for name, (content, difference) in files.items()
        },
        "class_names": vocabulary.names,
        # Values of label files; "labels" of the graph are indices.
        "class_ids": [entry.id for entry in vocabulary.classes],
        "ignore_label": vocabulary.ignore_label,
        "seen": vocabulary.seen_mask.tolist(),
        "input": {
            **inputs,
            "size": None if size is None else list(size),
            "pixels": _PIXELS,
            "patch_size": model.backbone.patch_size,
            "padding": "in the graph, to whole patches",
        },
        **({"words": _word_recipe(predictor)} if takes_words else {}),
        "channel_order": cfg.INPUT.FORMAT,
        "normalization": {
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "where": "in the graph",
        },
        "outputs": {
            name: text
            for name, text in _OUTPUTS.items()
            if name != "trusty" or model.trusty_target is not None
        },
        "gate": {
            "mode": gate.mode,
            "seen_bias": gate.bias,
            "bias_after_gate": gate.bias_after_gate,
            "form": gate.form,
            "scale": gate.scale,
            "where": "in the graph",
        },
        "resize": {
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "long_side": cfg.INPUT.MAX_SIZE_TEST,
            "library": cfg.INPUT.RESIZE,
            "interpolation": cfg.INPUT.INTERPOLATION,
            "rule": _RESIZE,
        },
        "windows": window_recipe(model.inference_settings, size),
        # null: every pixel gets a class.
        "background_threshold": model.inference_settings.background_threshold or None,
        "fingerprints": {
            # null: a model that needs none, as MaskCLIP.
            "checkpoint": weights.name or None,
            "checkpoint_sha256": file_sha256(weights) if weights.name else None,
            "clip_sha256": model.backbone.weights_sha256,
            "vocabulary": vocabulary.partition_fingerprint,
            "class_vectors": model.text_bank.fingerprint(vocabulary),
        },
        "provenance": model.provenance.to_json(),
    }


def file_recipe(content: bytes) -> dict[str, Any]:
    """Say by what a file is known."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _word_recipe(predictor: TagCLIPPredictor) -> dict[str, Any]:
    """Say how words become class vectors, and which of them are seen."""
    bank, trained = predictor.model.text_bank, predictor.model.train_vocabulary
    pairs = zip(trained.classes, trained.seen_mask, strict=True)
    return {
        **WORD_FILES,
        "tokens": _TOKENS,
        "templates": list(bank.templates),
        "context_length": bank.source.context_length,
        "vector": _VECTOR,
        "dim": bank(predictor.vocabulary).shape[1],
        "clip": bank.source.fingerprint,
        "unknown_classes": predictor.cfg.MODEL.TAGCLIP.TEST.UNKNOWN_CLASSES,
        # Lower case, single blanks, NFKC.
        "seen_names": sorted(set().union(*(entry.keys for entry, seen in pairs if seen))),
    }


def window_recipe(settings: InferenceSettings, size: tuple[int, int] | None) -> dict[str, Any]:
    """Say how windows lie over the resized image and what becomes of their scores.

    Args:
        settings: WINDOW and STRIDE of the config.
        size: fixed (height, width) in pixels; one that is not WINDOW overlaps by the same share
            of its sides. None: any.
    """
    window = stride = None
    if size is not None:
        window = list(size)
        stride = [max(1, round(side * settings.stride / settings.window)) for side in size]
    elif settings.mode == "slide":
        window, stride = [settings.window] * 2, [settings.stride] * 2
    return {
        "size": window,
        "stride": stride,
        "origins": _ORIGINS,
        "smaller_images": "the window shrinks" if size is None else "cannot be run",
        "fusion": _FUSION,
    }
