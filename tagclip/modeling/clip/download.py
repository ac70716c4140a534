"""Files of CLIP on the Hugging Face hub: from the cache, or downloaded."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tagclip.errors import CheckpointError
from tagclip.modeling.clip.tokenizer import TOKENIZER_FILES, VOCABULARY_FILES
from tagclip.modeling.clip.weights import file_sha256
from tagclip.utils.text import one_line

__all__ = ["PATIENCE", "fetch_config", "fetch_tag", "fetch_tokenizer"]

# Seconds after which the hub counts as out of reach. Its own client retries for much longer.
PATIENCE = 10


def fetch_tag(label: str, tag: Mapping[str, str], cache_dir: str = "") -> Path:
    """Return the weight file of a tag; a cached one needs no network.

    Args:
        label: how to call the weights in an error, "MODEL/TAG".
        tag: open_clip's entry (``open_clip.get_pretrained_cfg``); its ``hf_hub`` is read.
        cache_dir: folder of the downloads; "" is huggingface_hub's default.

    Raises:
        CheckpointError: it is not cached and cannot be downloaded, or it is damaged.
    """
    from tagclip.modeling.clip.library import open_clip

    repository, files = _files(tag)
    return _fetch(
        f"CLIP weights {label}", repository, files, cache_dir, "MODEL.CLIP.PRETRAINED to its path",
        lambda: open_clip.download_pretrained(dict(tag), cache_dir=cache_dir or None),
    )  # fmt: skip


def fetch_config(
    label: str,
    repository: str,
    file: str,
    cache_dir: str = "",
    setting: str = "MODEL.CLIP.NAME to local-dir:FOLDER",
) -> Path:
    """Return a json of a repository on the hub; a cached one needs no network.

    Args:
        label: how to call it in an error.
        repository: "organisation/repository".
        file: its name there.
        cache_dir: folder of the downloads; "" is huggingface_hub's default.
        setting: what to set if it cannot be had, key and value.

    Raises:
        CheckpointError: it is not cached and cannot be downloaded, or it is damaged.
    """
    from huggingface_hub import hf_hub_download

    return _fetch(
        f"MODEL.CLIP.NAME {label}", repository, [file], cache_dir, setting,
        lambda: hf_hub_download(repository, file, cache_dir=cache_dir or None),
    )  # fmt: skip


def fetch_tokenizer(label: str, repository: str, cache_dir: str = "") -> Path:
    """Return the folder of a tokenizer on the hub; a cached one needs no network.

    Args:
        label: how to call it in an error.
        repository: "organisation/repository".
        cache_dir: folder of the downloads; "" is huggingface_hub's default.

    Raises:
        CheckpointError: it is not cached and cannot be downloaded, or it is damaged.
    """

    def download() -> str:
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            repository, cache_dir=cache_dir or None, allow_patterns=list(TOKENIZER_FILES)
        )
        return str(next(Path(folder, f) for f in VOCABULARY_FILES if Path(folder, f).is_file()))

    label = f"MODEL.CLIP.NAME {label}: its tokenizer {repository} (hf_tokenizer_name)"
    return _fetch(
        label, repository, VOCABULARY_FILES, cache_dir,
        "MODEL.CLIP.TOKENIZER to their folder", download,
        f"the tokenizer's files (hf download {repository} --include '*token*' --include '*.model' "
        "--include 'vocab.*' --include merges.txt --local-dir FOLDER)",
    ).parent  # fmt: skip


def _fetch(
    label: str,
    repository: str,
    files: Sequence[str],
    cache_dir: str,
    setting: str,
    download: Callable[[], str],
    what: str = "that file",
) -> Path:
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache

    try:
        for file in files:
            cached = try_to_load_from_cache(repository, file, cache_dir or None)
            if isinstance(cached, str):
                return _checked(Path(cached))
        address = hf_hub_url(repository, files[0])
    # The hub's client says no to names that no repository can have.
    except ValueError as error:
        raise CheckpointError(
            f"{label}: {repository!r:.80} is no repository of the hub ({one_line(error)}), "
            "expected ORGANISATION/REPOSITORY; mend the name"
        ) from error
    try:
        get_session().head(address, timeout=PATIENCE)
        # The hub's client locks the file: of several processes one downloads, the others wait.
        path = Path(download())
    except Exception as error:
        raise CheckpointError(
            f"{label}: not cached, and {address} cannot be downloaded "
            f"({type(error).__name__}); fetch {what} on a machine with a network, put "
            f"{'it' if what == 'that file' else 'them'} anywhere and set {setting}"
        ) from error
    return _checked(path)


def _checked(path: Path) -> Path:
    """The path, if its content is what the hub has; the cache names large files by their sha256."""
    expected = Path(os.readlink(path)).name if path.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{64}", expected):
        return path
    found = file_sha256(path)
    if found != expected:
        blob = os.path.normpath(path.parent / os.readlink(path))
        raise CheckpointError(
            f"{path}: sha256 is {found}, expected {expected}; the download is damaged: move {blob} "
            "away and start again with a network"
        )
    return path


def _files(tag: Mapping[str, str]) -> tuple[str, list[str]]:
    """Split open_clip's "organisation/repository/file", and add under which names it may lie."""
    from tagclip.modeling.clip.library import open_clip

    names = open_clip.constants
    repository, file = os.path.split(tag["hf_hub"])
    if not file:
        return repository, [names.HF_SAFE_WEIGHTS_NAME, names.HF_WEIGHTS_NAME]
    stem, suffix = os.path.splitext(file)
    # open_clip fetches it instead where the repository has it.
    return repository, [file, *[f"{stem}.safetensors"] * (suffix in (".bin", ".pth"))]
