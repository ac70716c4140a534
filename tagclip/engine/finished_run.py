"""The finished run in a folder that another training is to write to: it is not replaced unasked."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from tagclip.checkpoint import find_weights, last_checkpoint, read_checkpoint
from tagclip.checkpoint.folder import clean_folder
from tagclip.checkpoint.metadata import (
    changed_keys,
    check_metadata,
    metadata_differences,
    saved_provenance,
)
from tagclip.checkpoint.reading import LAST
from tagclip.errors import CheckpointError, ConfigError
from tagclip.evaluation.results import CONFIG
from tagclip.modeling.clip.weights import file_sha256
from tagclip.utils.cli import check_output
from tagclip.utils.text import one_line
from tagclip.utils.untrusted import load_yaml

__all__ = ["refuse_finished_run", "remove_run"]

_FINAL = "model_final.pth"
# What training and evaluation write to OUTPUT_DIR, but for config.yaml, which every run replaces.
_OF_RUN = re.compile(
    rf"model_(final|\d+)\.pth|nan_dump.*\.pth|{LAST}|metrics\.json|results\.csv|\.results\.csv\.lock"
    r"|log\.txt(\.rank\d+)?|events\.out\.tfevents\..+"
)
_OF_EVALUATION = ("metrics.json", "per_class.csv", CONFIG, "predictions", "logits")


def refuse_finished_run(
    folder: str,
    metadata: dict[str, Any],
    weights: str,
    remedy: str = "name another OUTPUT_DIR, or give --resume (continues that run) or --overwrite "
    "(removes it)",
    unfinished: bool = False,
) -> None:
    """Refuse a training that would replace the model of another one; every process calls this.

    The same training again, with config, seed and start as they were, gives the same model and is
    not refused. Of a run that did not finish there is no such model.

    Args:
        folder: OUTPUT_DIR; "" is none.
        metadata: of the training, see `checkpoint_metadata`.
        weights: what it starts from, see `find_weights`; "" is CLIP.
        remedy: what to do, for the message.
        unfinished: whether to refuse a training, too, that would go on with another unfinished one.

    Raises:
        CheckpointError: ``weights`` leads to no checkpoint.
        ConfigError: the folder holds another such run.
    """
    found = ""
    if folder and comm.is_main_process():
        path = Path(folder) / _FINAL
        if os.path.lexists(path):
            found = _difference(path, metadata, weights)
        elif unfinished and (last := last_checkpoint(folder)):
            found = _difference(Path(last), metadata, weights)
    # The main process writes the folder, which other machines may not see.
    if found := comm.all_gather(found)[0]:
        noun = "run" if unfinished else "finished run"
        raise ConfigError(
            f"OUTPUT_DIR {folder}: found {found}, expected a folder without a {noun} of another "
            f"config; {remedy}"
        )


def _difference(path: Path, metadata: dict[str, Any], weights: str) -> str:
    """What run a checkpoint is of and where it differs; "" if it is the same one."""
    kind = "finished run" if path.name == _FINAL else "unfinished run"
    try:
        saved = read_checkpoint(path).get("tagclip") or {}
        check_metadata(saved, path)
        stages = saved_provenance(saved, path).stages
    except CheckpointError as error:
        return f"the {kind} of an unknown config ({one_line(error)})"
    if not saved.get("config"):
        return f"the {kind} of an unknown config ({path.name} holds none)"
    rows = [*filter(None, changed_keys(saved, metadata)[:1])]
    rows += [f"resumed {text}" for text in (saved.get("resumed") or ())[:1]]
    rows += metadata_differences(saved, metadata, compare_classes=True)
    begins = find_weights(weights) if weights else Path()
    start = file_sha256(begins) if begins.is_file() else ""
    if stages and stages[-1].start_sha256 != start:
        names = (begins.name, stages[-1].start)
        rows.append("MODEL.WEIGHTS {} (was {})".format(*(name or "empty" for name in names)))
    name = load_yaml(saved["config"]).get("CONFIG_NAME") or "a config without name"
    return f"the {kind} of {name} ({'; '.join(rows)})" if rows else ""


def remove_run(folder: str, weights: str) -> None:
    """Remove what trainings and evaluations wrote to a folder; every process calls this.

    Other files stay, config.yaml, too, which the next run replaces.

    Args:
        folder: OUTPUT_DIR; it may be missing.
        weights: path of the checkpoint that the next run starts from; "" is CLIP.

    Raises:
        ConfigError: that is one of the files, or the folder cannot be written, or a file in it not
            be removed.
    """
    root = Path(folder)
    start = Path(weights)
    for place in (start.parent.resolve() / start.name, start.resolve()) if weights else ():
        if place.parent == root.resolve() and _OF_RUN.fullmatch(place.name):
            raise ConfigError(
                f"MODEL.WEIGHTS {weights}: found a file of the run that --overwrite removes, "
                "expected one that stays; copy it to another folder, or name another OUTPUT_DIR"
            )
    if comm.is_main_process() and os.path.isdir(folder):
        # Before anything goes.
        check_output("OUTPUT_DIR", root, is_folder=True)
        clean_folder(root)
        found = [path for path in root.iterdir() if _OF_RUN.fullmatch(path.name)]
        found += [path for name in _OF_EVALUATION for path in root.glob(f"inference/*/{name}")]
        try:
            # Last, so that a kill in between leaves a run that is found again.
            for path in sorted(found, key=lambda path: path.name == _FINAL):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise ConfigError(
                f"{path}: found a file of an earlier run that cannot be removed "
                f"({error.strerror}), expected one of yours; name another OUTPUT_DIR"
            ) from error
    comm.synchronize()
