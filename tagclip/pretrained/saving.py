"""Writing the folder of a model whole or not at all, and sending it to the hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tagclip.checkpoint.pretrained_folder import (
    CARD,
    CONFIG,
    DESCRIPTION,
    VOCABULARY,
    WEIGHTS,
)
from tagclip.errors import CheckpointError
from tagclip.utils.files import folder_atomic
from tagclip.utils.text import error_text

__all__ = ["check_target", "push_to_hub", "save_folder"]

Content = Mapping[str, bytes | Path]


def check_target(folder: str | Path, overwrite: bool = False) -> Path:
    """Refuse a folder that holds something else, or a model that is not to be replaced.

    Returns:
        Its absolute path; a link is followed.

    Raises:
        CheckpointError: it does, or it is the current folder, which would not be there any more.
    """
    try:
        folder = Path(folder).resolve()
        is_free = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    # A zero byte, a circle of links, no rights.
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{str(folder)!r:.200}: cannot be a folder ({error_text(error)}), expected an empty or "
            "a new one; name another place"
        ) from error
    if Path.cwd().is_relative_to(folder) and folder.parent != folder:
        raise CheckpointError(
            f"{folder}: found the current folder, expected another one, as it is replaced as a "
            "whole; name a folder in it"
        )
    if is_free:
        return folder
    is_ours = (folder / DESCRIPTION).is_file()
    if is_ours and overwrite and (others := _others(folder)):
        raise CheckpointError(
            f"{folder}: found {', '.join(others)[:200]} beside the model that --overwrite removes, "
            "expected nothing that is not of it; move that, or name another place"
        )
    if not is_ours or not overwrite:
        found, remedy = "a file", "name another place"
        if folder.is_dir():
            found = "a model that was written before" if is_ours else "other files"
            remedy = f"replace it with --overwrite, or {remedy}" if is_ours else remedy
        raise CheckpointError(
            f"{folder}: found {found} there, expected an empty or a new folder; {remedy}"
        )
    return folder


def save_folder(content: Content, folder: str | Path, overwrite: bool = False) -> Path:
    """Write a folder as a whole.

    Args:
        content: see `pretrained_content`.
        folder: is created.
        overwrite: replace a model that is there; other files never are.

    Returns:
        Its absolute path.

    Raises:
        CheckpointError: see `check_target`; or the folder cannot be written.
    """
    folder = check_target(folder, overwrite)
    try:
        with folder_atomic(folder) as temporary:
            _write(content, temporary)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or name another "
            "folder"
        ) from error
    return folder


def _others(folder: Path) -> list[str]:
    """What in the folder of a model is none of its files."""
    known = {DESCRIPTION, CONFIG, VOCABULARY, WEIGHTS, CARD}
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return sorted(name for name in names - known if not name.startswith("clip/"))


def _write(content: Content, folder: Path) -> None:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(data, Path):
            shutil.copyfile(data, path)
        else:
            path.write_bytes(data)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def push_to_hub(
    content: Content,
    name: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Model of TagCLIP for Detectron2",
    branch: str | None = None,
) -> str:
    """Send a folder to the hub in one commit; the repository is made if there is none.

    Args:
        content: see `pretrained_content`.
        name: ``ORGANISATION/NAME``.
        private: whether a new repository is; None leaves it to the organisation.
        token: None takes that of ``hf auth login`` or HF_TOKEN.
        commit_message: of the commit.
        branch: None is main.

    Returns:
        Address of the commit.

    Raises:
        CheckpointError: the hub is not within reach, or refuses.
    """
    # See `tagclip.checkpoint.hub`. The mixin of the hub's client makes the repository and sends the
    # folder; as a base of the predictor it would save the whole config as arguments of its
    # constructor, and its from_pretrained asks for a config.json, offline in vain.
    from huggingface_hub import ModelHubMixin

    class HubModel(ModelHubMixin):
        """What the mixin saves is the content."""

        def _save_pretrained(self, save_directory: Path) -> None:
            _write(content, save_directory)

    try:
        commit = HubModel().push_to_hub(
            name, private=private, token=token, commit_message=commit_message, branch=branch
        )
    # The hub's client raises errors of its own, of its HTTP library and of the disk.
    except Exception as error:
        raise CheckpointError(
            f"{name}: cannot be sent to the hub ({error_text(error)[:200]}), expected ORGANISATION/"
            "NAME of yours and a token that may write; run hf auth login or set HF_TOKEN"
        ) from error
    return str(commit)
