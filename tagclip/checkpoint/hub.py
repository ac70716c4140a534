"""Models on the Hugging Face hub: their names, and their files in the cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tagclip.checkpoint.pretrained_folder import DESCRIPTION, WEIGHTS, folder_files
from tagclip.errors import CheckpointError
from tagclip.modeling.clip.config import HUB
from tagclip.modeling.clip.download import PATIENCE
from tagclip.utils.text import error_text, one_line

__all__ = ["download", "is_hub_name", "split_name"]

# ORGANISATION/NAME, and perhaps a branch, tag or commit.
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
# A path that ends so means a file.
_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx", ".json", ".yaml")


def is_hub_name(name: str) -> bool:
    """Whether a text names a model of the hub.

    It does if it begins with ``hf-hub:``, or is exactly ``ORGANISATION/NAME`` or
    ``ORGANISATION/NAME@REVISION``, does not end as files of weights do, and nothing of that name
    and no folder ORGANISATION is here: a mistyped path asks no hub.
    """
    if name.startswith(HUB):
        return True
    is_name = _NAME.fullmatch(name) and not name.partition("@")[0].endswith(_SUFFIXES)
    return bool(is_name) and not os.path.lexists(name.partition("/")[0])


def split_name(name: str) -> tuple[str, str | None]:
    """Return ``ORGANISATION/NAME`` and, if it is given, the revision."""
    repository, _, revision = name.removeprefix(HUB).partition("@")
    return repository, revision or None


def download(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Bring a model of the hub into the cache; return the path of its trained tensors.

    A cached model needs no network. With one, the hub is asked which commit the revision is; all
    files are of that commit. What an interrupted download leaves is no file of the cache.

    Args:
        name: see `is_hub_name`.
        revision: branch, tag or commit; goes before that of the name. None is the main branch.
        cache_dir: folder of the cache; None is huggingface_hub's.
        force_download: fetch also what is cached.
        local_files_only: ask no hub.
        token: see `huggingface_hub.hf_hub_download`.

    Raises:
        CheckpointError: there is no such model, it is neither cached nor within reach, or it is
            none that `TagCLIPPredictor.save_pretrained` wrote.
    """
    # A tenth of a second that files and folders need not wait for.
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    repository, named = split_name(name)
    revision = revision or named
    options = {
        "cache_dir": cache_dir,
        "force_download": force_download,
        "local_files_only": local_files_only,
        "token": token,
    }
    file = DESCRIPTION
    try:
        known = try_to_load_from_cache(repository, file, cache_dir, revision)
        if not isinstance(known, str) and not local_files_only:
            get_session().head(hf_hub_url(repository, file, revision=revision), timeout=PATIENCE)
        # Before anything large: what this is, and which files belong to it.
        folder = Path(hf_hub_download(repository, file, revision=revision, **options)).parent
        for file in folder_files(folder):
            hf_hub_download(repository, file, revision=folder.name, **options)
    except CheckpointError:
        raise
    except HFValidationError as error:
        raise CheckpointError(
            f"{name}: is no name of a model on the hub ({one_line(error)}), expected "
            "ORGANISATION/NAME; mend the name"
        ) from error
    except RemoteEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: found no {file} in this repository of the hub, expected a model that tagclip "
            "publish wrote; name another one"
        ) from error
    # The hub's client raises errors of its own, of its HTTP library and of the disk.
    except Exception as error:
        raise CheckpointError(
            f"{name}: found no such path here, and as a model of the hub its {file} is not cached "
            f"and cannot be downloaded ({error_text(error)[:160]}); check the name, or fetch it "
            "with a network and try again"
        ) from error
    return folder / WEIGHTS
