"""The folder in which a model is handed on, as `tagclip.pretrained` writes it.

=====================  ===========================================================================
``model.safetensors``  what was trained
``config.yaml``        its config; paths in it are relative to the folder
``vocabulary.json``    the class list of its training, with the split
``tagclip.json``       format, architecture, CLIP, provenance, results: see `read_description`
``README.md``          the model card, which nothing reads
``clip/``              files of a CLIP that has no public name
=====================  ===========================================================================
"""

from __future__ import annotations

import re
from functools import reduce
from pathlib import Path
from typing import Any

from tagclip.errors import CheckpointError
from tagclip.modeling.clip.weights import file_sha256
from tagclip.utils.text import error_text
from tagclip.utils.untrusted import load_json, load_yaml

__all__ = [
    "ARCHITECTURE",
    "CARD",
    "CONFIG",
    "DESCRIPTION",
    "FORMAT",
    "VOCABULARY",
    "WEIGHTS",
    "check_sha256",
    "config_value",
    "folder_files",
    "is_of_folder",
    "read_description",
    "read_metadata",
]

WEIGHTS, CONFIG, DESCRIPTION = "model.safetensors", "config.yaml", "tagclip.json"
VOCABULARY, CARD = "vocabulary.json", "README.md"
FORMAT = 1
# Config keys of the classes that a model is built of.
ARCHITECTURE = ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.SEM_SEG_HEAD.NAME")
_TYPES = {"architecture": dict, "weights_sha256": str, "vocabulary_sha256": str, "clip": dict,
          "metadata": dict, "results": list, "files": list}  # fmt: skip
_RESULT = {**dict.fromkeys(("file", "sha256", "dataset", "split", "protocol"), str),
           "metrics": dict}  # fmt: skip
# Whatever a file of CLIP was called, but no other folder than that of its tokenizer.
_CLIP_FILE = re.compile(r"clip/(?:tokenizer/)?(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+")
# Far beyond every class list.
_LARGEST = 64 << 20


def is_of_folder(path: Path) -> bool:
    """Whether a file is the trained tensors of such a folder."""
    return path.name == WEIGHTS and path.with_name(DESCRIPTION).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """Read ``tagclip.json``.

    Returns:
        ``format``; ``version`` of tagclip that wrote it; ``architecture``, the values of three
        config keys; ``weights_sha256`` of the trained tensors; ``vocabulary_sha256`` of the class
        list; ``clip`` with ``name``, ``pretrained``, ``sha256`` and ``file`` (None unless it is in
        the folder); ``files``, the names of those in ``clip/``; ``results`` with the files that
        they come from; ``metadata``, what `checkpoint_metadata` returns beside the config and
        CLIP's checksum.

    Raises:
        CheckpointError: it is missing, damaged, of a newer format or of another program.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CheckpointError(f"{folder}: found no {DESCRIPTION} in this folder{_advice(folder)}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        tree = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or not isinstance(tree.get("format"), int):
            raise ValueError("no format")
        if tree["format"] > FORMAT:
            raise CheckpointError(
                f"{path}: found format {tree['format']}, expected {FORMAT}; it was written by a "
                "newer version: update tagclip"
            )
        _check_entries(tree)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error_text(error)}), expected what tagclip publish writes; "
            "copy or download the folder again"
        ) from error
    return tree


def _check_entries(tree: dict[str, Any]) -> None:
    """Raise ValueError for what `read_description` does not return."""
    for key, kind in _TYPES.items():
        if not isinstance(tree.get(key), kind):
            raise ValueError(f"{key} is {tree.get(key)!r:.60}")
    if not isinstance(sha256 := tree["clip"].get("sha256"), str):
        raise ValueError(f"sha256 of clip is {sha256!r:.60}")
    for name in tree["files"]:
        if not isinstance(name, str) or not _CLIP_FILE.fullmatch(name):
            raise ValueError(f"{name!r:.60} is no file in clip/")
    for result in tree["results"]:
        if not _is_result(result):
            raise ValueError(f"{result!r:.60} is no result")


def _is_result(result: Any) -> bool:
    return (
        isinstance(result, dict)
        and all(isinstance(result.get(key), kind) for key, kind in _RESULT.items())
        and all(isinstance(value, (int, float)) for value in result["metrics"].values())
    )


def folder_files(folder: Path) -> list[str]:
    """Names of all files that a folder needs, from its description."""
    return [DESCRIPTION, CONFIG, VOCABULARY, WEIGHTS, *read_description(folder)["files"]]


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read what the checkpoint that became a folder said about itself, see `checkpoint_metadata`.

    Raises:
        CheckpointError: a file of the folder is missing or damaged, or its config is of another
            architecture than it says.
    """
    tree = read_description(folder)
    if missing := [name for name in folder_files(folder) if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder}: found no {', '.join(missing)} in this folder, expected all of what tagclip "
            "publish writes; copy or download it again"
        )
    check_sha256(folder / VOCABULARY, tree["vocabulary_sha256"])
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        text = path.read_text(encoding="utf-8")
        config = load_yaml(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is no readable config ({error_text(error)}); copy or download the folder "
            "again"
        ) from error
    for key in ARCHITECTURE:
        found, expected = config_value(config, key), tree["architecture"].get(key)
        if found != expected:
            raise CheckpointError(
                f"{folder}: found {key} {found!r:.60} in {CONFIG}, expected {expected!r:.60} as "
                f"{DESCRIPTION} says; the files are of different models: copy or download all of "
                "them"
            )
    return tree["metadata"] | {"config": text, "clip_sha256": tree["clip"].get("sha256")}


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file that is not the one the folder was written with.

    Raises:
        CheckpointError: it is another, or cannot be read.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check its rights"
        ) from error
    if found != expected:
        raise CheckpointError(
            f"{path}: sha256 is {found}, expected {expected!r:.70} as {DESCRIPTION} says; the "
            "file is damaged, changed or of another model: copy or download it again"
        )


def config_value(config: Any, key: str) -> Any:
    """The value of a dotted key in nested dicts; None if there is none."""
    return reduce(lambda n, k: n.get(k) if isinstance(n, dict) else None, key.split("."), config)


def _advice(folder: Path) -> str:
    """What a folder without description may be, and what to do."""
    if (folder / "last_checkpoint").is_file():
        names = sorted(path.name for path in folder.glob("model_*.pth"))
        one = f"such as {folder / names[-1]}" if names else "with its path"
        return f", it is that of a run; name one of its checkpoints, {one}"
    try:
        kind = load_json((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        return (
            f", its config.json says {str(kind)!r:.60}; this is a model of another library, "
            "expected one that tagclip publish wrote: name another"
        )
    except (OSError, ValueError, LookupError, TypeError):
        return ", expected one that tagclip publish wrote; name another, or a checkpoint"
