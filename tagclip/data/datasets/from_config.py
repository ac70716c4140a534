"""Registering the datasets that a config describes."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode

from tagclip.config.checks import check_value
from tagclip.data.datasets.register import register_folder_dataset
from tagclip.data.datasets.selection import skip_bad_samples
from tagclip.errors import ConfigError
from tagclip.utils.text import did_you_mean

__all__ = ["apply_bad_sample_policy", "register_folder_datasets"]

_REQUIRED = ("name", "images", "labels", "vocabulary")
_KNOWN = (*_REQUIRED, "image_list")


def register_folder_datasets(cfg: CfgNode) -> None:
    """Register every entry of `DATASETS.FOLDER_DATASETS`; the same again does nothing.

    An entry holds the arguments of `register_folder_dataset`.

    Raises:
        ConfigError: an entry is no mapping of texts, or a key is unknown or missing.
        DatasetError: a name belongs to another dataset.
    """
    for index, entry in enumerate(cfg.DATASETS.FOLDER_DATASETS):
        where = f"DATASETS.FOLDER_DATASETS[{index}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"{where} is {entry!r}, expected {{name: ..., images: ..., labels: ..., "
                "vocabulary: ...}"
            )
        for key, value in entry.items():
            if key not in _KNOWN:
                hint = did_you_mean(key, _KNOWN) or f"; known are {', '.join(_KNOWN)}"
                raise ConfigError(f"{where}: unknown key {key!r}{hint}")
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{where}: {key} is {value!r}, expected a text; put it in quotes")
        missing = [key for key in _REQUIRED if key not in entry]
        if missing:
            raise ConfigError(f"{where}: {', '.join(missing)} is missing; add it")
        register_folder_dataset(**entry)


def apply_bad_sample_policy(cfg: CfgNode) -> None:
    """Let the datasets of a config refuse bad samples, or skip them (DATASETS.ON_BAD_SAMPLE).

    Raises:
        ConfigError: the value is unknown.
    """
    policy = cfg.DATASETS.ON_BAD_SAMPLE
    check_value("DATASETS.ON_BAD_SAMPLE", policy)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        skip_bad_samples(name, cfg.INPUT.MAX_PIXELS if policy == "skip" else None)
