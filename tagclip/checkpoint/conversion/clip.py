"""The frozen CLIP inside an official checkpoint, and CLIP weights as one plain file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tagclip.checkpoint.folder import serialised
from tagclip.errors import CheckpointError, ConfigError
from tagclip.modeling.backbone.positions import resize_positions, square_grid
from tagclip.modeling.clip import CLIPSource
from tagclip.modeling.clip.weights import file_sha256, read_clip_weights
from tagclip.utils.files import write_atomic
from tagclip.utils.text import json_text

__all__ = [
    "OTHER_SOURCE",
    "check_suffix",
    "compare_clip",
    "convert_clip",
    "summary",
    "write_frozen_clip",
]

OTHER_SOURCE = "name another file as IN: whole CLIP weights, or a checkpoint of TagCLIP or ZegCLIP"
"""What to do about a file that is neither, for messages."""

# Largest difference of frozen weights that are the same but for the resize of their positions.
_SAME = 1e-4


def convert_clip(source: Path, target: Path, sha256: str) -> list[str]:
    """Write CLIP weights of any kind as one state dict with open_clip's names.

    Args:
        source: what `read_clip_weights` reads.
        target: a ``.safetensors`` or ``.pt`` file.
        sha256: see `read_clip_weights`.

    Returns:
        What was kept, dropped and recorded, in lines of text.

    Raises:
        CheckpointError: see `read_clip_weights`.
        ConfigError: the target has another suffix.
    """
    weights = read_clip_weights(source, confirmed_sha256=sha256, remedy=OTHER_SOURCE)
    _write_weights(target, weights.state, weights.quick_gelu)
    activation = {
        True: "QuickGELU: MODEL.CLIP.NAME needs the suffix -quickgelu or a json that says so",
        False: "GELU",
        None: "unknown: nothing in the file or beside it tells",
    }[weights.quick_gelu]
    return [
        f"{source}: CLIP weights",
        *summary(weights.state),
        "dropped: constants that are no weights (sizes, position_ids, attention mask), if any",
        f"recorded: activation {activation}",
        f"written: {target}, sha256 {file_sha256(target)}",
    ]


def write_frozen_clip(
    target: Path, clip: Mapping[str, Tensor], known: Mapping[str, Any]
) -> list[str]:
    """Write the CLIP of an official checkpoint and, beside it, an open_clip model json.

    Args:
        target: a ``.safetensors`` or ``.pt`` file.
        clip: open_clip's names -> tensors.
        known: open_clip's config of the model, if known, for the number of heads.

    Raises:
        CheckpointError: there are no weights, or their position table is of no square grid.
        ConfigError: the target has another suffix.
    """
    if not clip:
        raise CheckpointError("--clip-out: the checkpoint holds no frozen CLIP weights")
    has_text = "token_embedding.weight" in clip
    model = _model_json(clip, known) if has_text else {}
    _write_weights(target, clip, True)
    lines = [f"kept: {len(clip)} frozen tensors of CLIP -> {target}, sha256 {file_sha256(target)}"]
    if not has_text:
        return [*lines, "no model json beside it: the checkpoint holds no text tower"]
    path = target.with_suffix(".json")
    write_atomic(path, json_text(model, indent=2) + "\n")
    source = "as in MODEL.CLIP.NAME" if known else "64 channels each, as in all of OpenAI's"
    return [*lines, f"written: {path}, for MODEL.CLIP.NAME; attention heads {source}"]


def _model_json(clip: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's model config; the number of heads is the one size that no tensor tells."""
    width, patch = clip["visual.conv1.weight"].shape[0], clip["visual.conv1.weight"].shape[-1]
    table = clip["visual.positional_embedding"]
    if (grid := square_grid(table)) is None:
        raise CheckpointError(
            f"--clip-out: found a visual.positional_embedding of shape {tuple(table.shape)}, "
            "expected (1 + side x side, width); leave the option out, or take another checkpoint"
        )
    vocabulary, text_width = clip["token_embedding.weight"].shape
    vision, text = known.get("vision_cfg", {}), known.get("text_cfg", {})
    return {
        "embed_dim": clip["visual.proj"].shape[1],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid[0] * patch,
            "layers": _count(clip, "visual.transformer.resblocks."),
            "width": width,
            "head_width": vision.get("head_width", 64),
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": len(clip["positional_embedding"]),
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text.get("heads", max(1, text_width // 64)),
            "layers": _count(clip, "transformer.resblocks."),
        },
    }


def _count(clip: Mapping[str, Tensor], prefix: str) -> int:
    return len({n.removeprefix(prefix).split(".")[0] for n in clip if n.startswith(prefix)})


def _write_weights(path: Path, state: Mapping[str, Tensor], quick_gelu: bool | None) -> None:
    """Write open_clip's state dict, float32."""
    check_suffix(path, ".safetensors", ".pt")
    state = {name: tensor.float().contiguous().clone() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        known = {} if quick_gelu is None else {"quick_gelu": str(quick_gelu).lower()}
        content = save(state, {"format": "pt"} | known)
    else:
        content = serialised(state)
    write_atomic(path, content)


def compare_clip(source: Path, clip: Mapping[str, Tensor], own: CLIPSource) -> None:
    """Refuse other CLIP weights than those that an official checkpoint was trained with.

    Args:
        source: the checkpoint, for messages.
        clip: its frozen tensors under open_clip's names. Its position table has the grid of the
            training crops.
        own: the config's CLIP.

    Raises:
        CheckpointError: a tensor of the vision tower differs.
    """
    state = own.state_dict()
    for name, theirs in clip.items():
        if not name.startswith("visual."):
            continue
        ours = state.get(name)
        if name == "visual.positional_embedding" and ours is not None:
            grids = square_grid(ours), square_grid(theirs)
            ours = resize_positions(ours, *grids, "bilinear") if all(grids) else ours
        fits = ours is not None and ours.shape == theirs.shape
        difference = (ours - theirs.float()).abs().max().item() if fits else math.inf
        if difference > _SAME:
            raise CheckpointError(
                f"{source}: its frozen {name} differs from that of {own.path or own.name} by "
                f"{difference:.2g}, expected the CLIP that it was trained with; mend MODEL.CLIP, "
                "or write its own weights with --clip-out and name them as MODEL.CLIP.PRETRAINED"
            )


def check_suffix(path: Path, *suffixes: str) -> None:
    """Raise ConfigError unless a file name ends as its content demands."""
    if path.suffix not in suffixes:
        raise ConfigError(f"{path}: found a {path.suffix or 'name without suffix'}, expected "
                          f"{' or '.join(suffixes)} for what IN is; rename OUT")  # fmt: skip


def summary(
    state: Mapping[str, Tensor], sources: Mapping[str, list[str]] | None = None
) -> list[str]:
    """Count the tensors that are kept, and name each with what it was made of."""
    parameters = sum(tensor.numel() for tensor in state.values())
    made = [f"kept: {name} <- {' + '.join(old)}" for name, old in (sources or {}).items()]
    return [f"kept: {len(state)} tensors, {parameters:,} parameters", *made]
