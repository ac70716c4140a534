"""Mean and standard deviation of the pixels with which CLIP was trained, as its weights tell."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tagclip.utils.untrusted import load_json

__all__ = ["beside_weights", "compare_statistics", "interpolation_beside", "statistics"]

logger = logging.getLogger(__name__)

# The json beside weights, where in it the values are, and their names: open_clip's, transformers'.
_PLACES = (
    ("open_clip_config.json", "preprocess_cfg", "mean", "std"),
    ("preprocessor_config.json", "", "image_mean", "image_std"),
)
# How those two call the interpolation; transformers has Pillow's number.
_RESIZES = (
    ("open_clip_config.json", "preprocess_cfg", "interpolation"),
    ("preprocessor_config.json", "", "resample"),
)
_INTERPOLATIONS = {"bilinear": "bilinear", "bicubic": "bicubic", 2: "bilinear", 3: "bicubic"}
# Configs round to three decimals.
_SAME = 0.01


def beside_weights(path: Path) -> dict[str, list[float]] | None:
    """Read the statistics from the json in the folder of a weight file.

    Returns:
        ``mean`` and ``std``, each of R, G, B with pixels from 0 to 1; None if no json has them.
    """
    for name, part, *keys in _PLACES:
        file = path.with_name(name)
        try:
            content = load_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
            found = content.get(part) or {} if part else content
            if any(key in found for key in keys):
                return statistics(*(found[key] for key in keys))
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning(
                "%s: its %s and %s of the pixels cannot be read (%r), expected three numbers each",
                file, *keys, error,
            )  # fmt: skip
    return None


def interpolation_beside(path: Path) -> str | None:
    """Read how images were resized from the json in the folder of a weight file.

    Returns:
        "bilinear" or "bicubic"; None if no json says one of them.
    """
    for name, part, key in _RESIZES:
        file = path.with_name(name)
        try:
            content = load_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
            found = (content.get(part) or {} if part else content).get(key)
            if found in _INTERPOLATIONS:
                return _INTERPOLATIONS[found]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logger.warning("%s: its %s cannot be read (%r)", file, key, error)
    return None


def statistics(mean: Sequence[float], std: Sequence[float]) -> dict[str, list[float]]:
    """Check the values of R, G, B.

    Raises:
        ValueError: they are not three numbers from 0 to 1 each, or a deviation is not above 0.
    """
    values = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    if any(len(v) != 3 or not all(0 <= x <= 1 for x in v) for v in values.values()):
        raise ValueError("not three numbers from 0 to 1")
    if min(values["std"]) <= 0:
        raise ValueError("a std that is not above 0")
    return values


def compare_statistics(
    own: Mapping[str, Sequence[float]] | None,
    mean: Sequence[float],
    std: Sequence[float],
    channels: str,
) -> None:
    """Log the statistics that came with CLIP's weights; a warning where others are in force.

    Args:
        own: as `beside_weights` returns them; None logs nothing.
        mean: ``MODEL.PIXEL_MEAN``, of pixels from 0 to 255.
        std: ``MODEL.PIXEL_STD``, of pixels from 0 to 255.
        channels: ``INPUT.FORMAT``, their order.
    """
    if own is None:
        return
    theirs = [[round(255 * own[k]["RGB".index(c)], 3) for c in channels] for k in ("mean", "std")]
    pairs = zip([*theirs[0], *theirs[1]], [*mean, *std], strict=True)
    if all(abs(a - b) < _SAME for a, b in pairs):
        logger.info("CLIP's weights came with the pixel statistics that are in force")
        return
    logger.warning(
        "CLIP's weights came with other pixel statistics than MODEL.PIXEL_MEAN %s and "
        'MODEL.PIXEL_STD %s, which are in force; a new training takes theirs with '
        'MODEL.PIXEL_MEAN "%s" MODEL.PIXEL_STD "%s"', list(mean), list(std), *theirs,
    )  # fmt: skip
