"""How images are prepared where a config leaves it to CLIP's weights."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from tagclip.errors import ConfigError
from tagclip.modeling.clip.pixels import compare_statistics, statistics
from tagclip.modeling.clip.source import CLIPSource

__all__ = ["compare_with_weights", "resolve_pixels"]

logger = logging.getLogger(__name__)


def resolve_pixels(cfg: CfgNode) -> CfgNode:
    """Return the config with the numbers that CLIP's weights were trained with.

    An empty ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` and ``INPUT.INTERPOLATION`` "weights" are taken
    from the weights' tag, or the json beside them; of a bare file from the tags of its model,
    if they all say the same; random weights and models without tags have open_clip's defaults.

    Returns:
        ``cfg`` itself if it leaves nothing open.

    Raises:
        ConfigError: the weights do not say it, or one of mean and deviation alone is empty.
        CheckpointError: the weights cannot be found.
    """
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if bool(mean) != bool(std):
        raise ConfigError(
            f"MODEL.PIXEL_MEAN: found {list(mean)} with PIXEL_STD {list(std)}, expected both [] "
            "(those of CLIP's weights) or three numbers each"
        )
    needs_resize = cfg.INPUT.INTERPOLATION == "weights"
    if mean and not needs_resize:
        return cfg
    source, resolved = CLIPSource.from_config(cfg), cfg.clone()
    resolved.defrost()
    if not mean:
        own = source.pixel_statistics or _of_all_tags(source, "MODEL.PIXEL_MEAN", "mean", "std")
        for key, name in (("PIXEL_MEAN", "mean"), ("PIXEL_STD", "std")):
            values = [255 * own[name]["RGB".index(channel)] for channel in cfg.INPUT.FORMAT]
            resolved.MODEL[key] = [round(value, 4) for value in values]
    if needs_resize:
        found = source.interpolation or _of_all_tags(
            source, "INPUT.INTERPOLATION", "interpolation"
        )["interpolation"]  # fmt: skip
        resolved.INPUT.INTERPOLATION = found
    logger.info(
        "Images as CLIP's weights say: MODEL.PIXEL_MEAN %s, MODEL.PIXEL_STD %s, "
        "INPUT.INTERPOLATION %s", resolved.MODEL.PIXEL_MEAN, resolved.MODEL.PIXEL_STD,
        resolved.INPUT.INTERPOLATION,
    )  # fmt: skip
    if cfg.is_frozen():
        resolved.freeze()
    return resolved


def compare_with_weights(cfg: CfgNode, source: CLIPSource) -> None:
    """Log where images are prepared otherwise than in the training of CLIP's weights.

    Args:
        cfg: what it leaves to the weights is theirs, see `resolve_pixels`.
        source: the weights of ``cfg``.
    """
    cfg = resolve_pixels(cfg)
    compare_statistics(
        source.pixel_statistics, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
    )
    trained, used = source.interpolation, cfg.INPUT.INTERPOLATION
    if trained not in (None, used):
        logger.info(
            "CLIP's weights were trained on images resized by %s interpolation; "
            "INPUT.INTERPOLATION %s is in force", trained, used,
        )  # fmt: skip


def _of_all_tags(source: CLIPSource, setting: str, *keys: str) -> dict[str, Any]:
    """What all tags of a model say, or open_clip's defaults of a model that has none."""
    from dataclasses import asdict

    from tagclip.modeling.clip.library import open_clip

    tags = open_clip.list_pretrained_tags_by_model(source.name) if source.pretrained else []
    configs = [open_clip.get_pretrained_cfg(source.name, tag) for tag in tags]
    if not tags:
        configs = [asdict(open_clip.transform.PreprocessCfg())]
    said = {tuple(map(str, (config[key] for key in keys))) for config in configs}
    if len(said) > 1:
        lines = (f"{t} {', '.join(str(c[key]) for key in keys)}"
                 for t, c in zip(tags, configs, strict=True))  # fmt: skip
        raise ConfigError(
            f"{setting}: found those of CLIP's weights asked for, but {source.pretrained} has no "
            f"open_clip_config.json beside it and the tags of {source.name} differ "
            f"({'; '.join(lines)}); name the tag as MODEL.CLIP.PRETRAINED, or give numbers"
        )
    if tags:
        log_first_n(
            logging.INFO,
            f"{source.pretrained}: nothing beside it says how images were prepared; taken from the "
            f"tags of {source.name}",
            key="message",
            name=__name__,
        )
    found = configs[0]
    if "mean" in keys:
        return statistics(found["mean"], found["std"])
    return {"interpolation": found["interpolation"]}
