"""Configs by name, as in detectron2: the same in a checkout and in an installed package.

    cfg = tagclip.load_config("voc/tagclip_vitb16_voc_inductive_convtrust.yaml")
    path = tagclip.model_zoo.get_config_file("minibench/tagclip_minibench_composition.yaml")

``--config-file`` and ``_BASE_`` take such names, too, where no file is called so. A name is the
path below ``configs``, or a project's name in lower case, also an earlier one, and the path below
its ``configs``. ``tagclip configs`` lists all.
"""

from __future__ import annotations

import builtins
import glob
import os

from tagclip.errors import ConfigError
from tagclip.projects import ROOT, current_path
from tagclip.utils.text import did_you_mean

__all__ = ["get_config_file", "list", "suggestion"]


def get_config_file(name: str) -> str:
    """Return the path of a config.

    Args:
        name: one of `list`.

    Raises:
        ConfigError: there is no such config.
    """
    found = _files().get(current_path(name))
    if found is None:
        raise ConfigError(f"{name}: found no such config in the model zoo{suggestion(name)}")
    return found


def list() -> builtins.list[str]:
    """Return the names of all configs, sorted; ``Base-*`` are what others are made of."""
    return sorted(_files())


def suggestion(name: str) -> str:
    """Return ``"; did you mean NAME?"`` for a name or path that is not there, or how to list all.

    Args:
        name: what was found, for instance ``configs/voc/NAME.yaml`` where there is no checkout.
    """
    short = "/".join(name.split("/")[-2:])
    return did_you_mean(short, _files()) or "; names of configs: tagclip configs"


def _files() -> dict[str, str]:
    """Name -> path."""
    folders = {"": os.path.join(ROOT, "configs")}
    for folder in glob.glob(os.path.join(glob.escape(ROOT), "projects", "*", "configs")):
        folders[os.path.basename(os.path.dirname(folder)).lower()] = folder
    return {
        os.path.join(prefix, file): os.path.join(folder, file)
        for prefix, folder in folders.items()
        for file in glob.glob("**/*.yaml", root_dir=folder, recursive=True)
    }
