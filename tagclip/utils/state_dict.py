"""The weights of a model inside what trainers and wrappers of torch save around them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagclip.errors import CheckpointError
from tagclip.utils.text import listed

__all__ = [
    "STATE_KEYS",
    "check_filled",
    "check_finite",
    "check_floating",
    "kind_of_numbers",
    "type_name",
    "unwrap",
]

# Where trainers put the state dict, and where they put the moving average of the weights.
STATE_KEYS = ("state_dict", "model", "model_state_dict")
_EMA = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
# Wrappers put these before all names: parallel training and averaging, and Lightning.
_PREFIXES = ("module.", "model.")
_EMA_PREFIXES = tuple(f"{key}." for key in _EMA)
# torch.compile puts this before any part of a name; those of FSDP and checkpoint_wrapper are in no
# state dict.
_COMPILED = re.compile(r"(?<![^.])_orig_mod\.")
# Number of models in an average of torch.optim.swa_utils.
_AVERAGED = "n_averaged"
# End the names of what a model stores as integers: counts and places in tables.
_COUNTS = ("num_batches_tracked", "position_ids", "token_type_ids", "relative_position_index")
# End the names of matrices that give nothing if they are zero, unlike biases and positions.
_MATRICES = ("weight", "proj", "projection")
_LISTED = 5


def unwrap(content: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Find the state dict in a file's content and free its names of what wrappers put before them.

    Args:
        content: a state dict, or one under ``state_dict``, ``model`` or ``model_state_dict``, also
            nested. Of weights and their moving average (EMA) the weights are taken.
        path: the file, for messages.

    Returns:
        Name -> tensor, and what was unwrapped, in words for one line: keys, prefixes, and what was
        left. ``module.`` and ``model.`` are removed where all names begin so, ``_orig_mod.``
        (torch.compile) wherever it stands.

    Raises:
        CheckpointError: there are other things than tensors, or no single state dict.
    """
    state = content
    found: list[str] = []
    while key := _weights_key(state, path):
        found.append(f"[{key!r}]")
        # mmengine's EMAHook stores the average as the state_dict, and the other weights here.
        other = "weights without EMA" if "message_hub" in state else "EMA"
        found += [f"[{ema!r}] ({other}) left" for ema in _EMA if ema in state and ema != key]
        state = state[key]
    for name, value in state.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise CheckpointError(
                f"{path}: found a {type(value).__name__} named {name!r:.80}, expected only tensors "
                f"with names, or these under one of {', '.join(STATE_KEYS)}; save the "
                "model's state dict"
            )
    return _plain_names(dict(state), found, path), found


def kind_of_numbers(tensor: Tensor) -> str:
    """Say in a word what a tensor holds: what becomes another kind is rounded, cut or made up."""
    if tensor.is_complex():
        return "complex"
    # Two numbers to a byte, which torch can neither compare nor convert.
    if tensor.dtype == torch.float4_e2m1fn_x2:
        return "packed"
    # Scales of other numbers: powers of two without a sign, and no zero.
    if tensor.dtype == torch.float8_e8m0fnu:
        return "power of two"
    if tensor.is_floating_point():
        return "floating-point"
    return "bool" if tensor.dtype == torch.bool else "integer"


def type_name(tensor: Tensor) -> str:
    """Return a tensor's dtype without the ``torch.`` before it."""
    return str(tensor.dtype).removeprefix("torch.")


def check_floating(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that are no floating-point numbers; the counts of a layer may be integers.

    Args:
        state: name -> tensor.
        path: the file, for messages.

    Raises:
        CheckpointError: there are such; it names their tensors.
    """
    other = [
        f"{name} ({type_name(tensor)})"
        for name, tensor in state.items()
        if kind_of_numbers(tensor) != "floating-point" and not name.endswith(_COUNTS)
    ]
    if other:
        raise CheckpointError(
            f"{path}: found {listed(other, _LISTED)}, expected floating-point weights; take the "
            "file that was made before they were quantized or cast"
        )


def check_finite(state: Mapping[str, Tensor], path: str | Path, advice: str) -> None:
    """Refuse weights of which one is infinite or not a number, or beyond what float32 holds.

    Args:
        state: name -> tensor.
        path: the file, for messages.
        advice: what to do, for the end of the message.

    Raises:
        CheckpointError: there are such; it names their tensors.
    """
    # torch has no isfinite for numbers of one byte, and a model has none of float64; integers are
    # finite.
    wide = (
        (name, t.float() if t.element_size() == 1 or t.dtype == torch.float64 else t)
        for name, t in state.items()
        if kind_of_numbers(t) in ("floating-point", "complex")
    )
    broken = [name for name, tensor in wide if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: found values that are not finite in {listed(broken, _LISTED)}, "
            f"expected numbers only; {advice}"
        )

    double = [(name, t) for name, t in state.items() if t.dtype == torch.float64]
    if vanishing := [name for name, t in double if t.any() and not t.float().any()]:
        raise CheckpointError(
            f"{path}: found values too small for float32 in {listed(vanishing, _LISTED)}, expected "
            f"some above 1e-45; {advice}"
        )


def check_filled(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse matrices of zeros: a download that broke off in a file of the full size has them.

    Args:
        state: name -> tensor.
        path: the file, for messages.

    Raises:
        CheckpointError: there are such; it names their tensors.
    """
    names = (n for n, tensor in state.items() if tensor.dim() > 1 and n.endswith(_MATRICES))
    if empty := [name for name in names if not state[name].any()]:
        raise CheckpointError(
            f"{path}: found nothing but zeros in {listed(empty, _LISTED)}, expected trained "
            "weights; the file is incomplete: download it again"
        )


def _weights_key(content: Mapping[str, Any], path: str | Path) -> str | None:
    """The key under which weights are; None if there is no such key."""
    for keys in (STATE_KEYS, _EMA):
        found = [key for key in keys if _holds_weights(content.get(key))]
        if len(found) > 1:
            raise CheckpointError(
                f"{path}: found weights under {' and '.join(map(repr, found))}, expected one state "
                "dict; save the one that is meant"
            )
        if found:
            return found[0]
    return None


def _holds_weights(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    inner = (v for k, v in value.items() if isinstance(v, Tensor) or k in STATE_KEYS + _EMA)
    return not value or any(isinstance(v, Tensor) or _holds_weights(v) for v in inner)


def _plain_names(
    state: Mapping[str, Tensor], found: list[str], path: str | Path
) -> dict[str, Tensor]:
    """Rename the tensors, and add to ``found`` what was done."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = _COMPILED.sub("", name)
        if short in plain:
            raise CheckpointError(
                f"{path}: found {short!r:.80} with and without _orig_mod., which torch.compile "
                "puts before names, expected one of them; save the state dict of one model"
            )
        plain[short] = tensor
    found += sorted({part for name in state for part in _COMPILED.findall(name)})
    while plain:
        ema = {name for name in plain if name.startswith(_EMA_PREFIXES)}
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in plain)), None)
        if _AVERAGED in plain:
            del plain[_AVERAGED]
            found.append(f"{_AVERAGED} (an average of models)")
        elif ema and len(ema) < len(plain):
            found += sorted({f"{name.partition('.')[0]}. (EMA) left" for name in ema})
            plain = {name: tensor for name, tensor in plain.items() if name not in ema}
        elif prefix:
            found.append(prefix)
            plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
        else:
            break
    return plain
