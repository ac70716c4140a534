"""Write MiniBench to disk in the VOC layout and check it against the committed checksums."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tagclip.errors import DatasetError
from tagclip.projects.minibench import VOCABULARY_JSON
from tagclip.projects.minibench.scenes import Scene, draw_scene
from tagclip.projects.minibench.textures import Stream
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import folder_atomic, remove_leftovers
from tagclip.utils.run_lock import RunLock

__all__ = ["SUBSETS", "checksum", "generate", "scene"]

logger = logging.getLogger(__name__)

# Number of images, and the seed that no other subset shares.
SUBSETS = {"train": (400, 21), "val": (100, 22), "test": (100, 23)}
_KINDS = ("images", "labels")
_CHECKSUMS = Path(__file__).with_name("checksums.json")


def scene(subset: str, index: int) -> Scene:
    """Draw one image of a subset."""
    return draw_scene(Stream(SUBSETS[subset][1], index))


def checksum(root: Path, subset: str) -> str:
    """sha256 (hex) over the decoded pixels and labels of a subset on disk, in order.

    Raises:
        DatasetError: an image is missing or damaged.
    """
    return _checksum(*(root / kind / subset for kind in _KINDS), subset)


def _checksum(images: Path, labels: Path, subset: str) -> str:
    digest = hashlib.sha256()
    for index in range(SUBSETS[subset][0]):
        for folder in (images, labels):
            path = folder / f"{index:06d}.png"
            try:
                with Image.open(path) as file:
                    digest.update(np.asarray(file).tobytes())
            except (OSError, SyntaxError) as error:
                raise DatasetError(f"{path}: cannot be read ({error}); generate it anew") from error
    return digest.hexdigest()


def generate(root: Path, subsets: Iterable[str] = tuple(SUBSETS)) -> None:
    """Write subsets below ``root`` unless they are there already, whole and unchanged.

    Each subset is written beside its place and renamed when it is complete and verified. What a
    killed run left there goes.

    Args:
        root: becomes ``root/images/{train,val,test}`` and ``root/labels/{train,val,test}``.
        subsets: keys of `SUBSETS`.

    Raises:
        ConfigError: another process generates there.
        DatasetError: the pixels are not those of the committed checksums, or files of somebody else
            are in the way.
        OutputError: the files cannot be written.
    """
    expected = json.loads(_CHECKSUMS.read_text())
    for subset in subsets:
        if _is_complete(root, subset, expected[subset]):
            logger.info("%s: %s is complete and verified", root, subset)
            continue
        _refuse_strangers(root, subset)
        with RunLock(root, "--root"):
            _replace(root, subset, expected[subset])
        logger.info("%s: wrote and verified %d images of %s", root, SUBSETS[subset][0], subset)


def _replace(root: Path, subset: str, expected: str) -> None:
    for kind in _KINDS:
        remove_leftovers(root / kind, subset)
    with ExitStack() as stack:
        stack.callback(_remove_empty, root)
        images, labels = (
            stack.enter_context(folder_atomic(root / kind / subset)) for kind in _KINDS
        )
        _write(images, labels, subset)
        found = _checksum(images, labels, subset)
        if found != expected:
            raise DatasetError(
                f"{root}: generated {subset} with sha256 {found}, expected {expected}; report your "
                "numpy and Pillow versions"
            )


def _remove_empty(root: Path) -> None:
    """Remove the folders of all subsets if none is there."""
    for kind in _KINDS:
        with suppress(OSError):
            (root / kind).rmdir()


def _refuse_strangers(root: Path, subset: str) -> None:
    """What is generated anew replaces the folders."""
    for kind in _KINDS:
        for path in (root / kind / subset).glob("[!.]*"):
            if not re.fullmatch(r"\d{6}\.png", path.name):
                raise DatasetError(
                    f"{path}: found a file that is none of MiniBench's, expected a folder for them "
                    "alone; name another with --root"
                )


def _is_complete(root: Path, subset: str, expected: str) -> bool:
    folders = [root / kind / subset for kind in _KINDS]
    if not any(folder.is_dir() for folder in folders):
        return False
    names = {f"{index:06d}.png" for index in range(SUBSETS[subset][0])}
    whole = all({file.name for file in folder.glob("*.png")} == names for folder in folders)
    try:
        if whole and checksum(root, subset) == expected:
            return True
    except DatasetError as error:
        logger.info("%s", error)
    logger.info("%s: %s is incomplete or changed, generating it anew", root, subset)
    return False


def _write(images: Path, labels: Path, subset: str) -> None:
    palette = np.zeros((256, 3), dtype=np.uint8)
    colors = Vocabulary.from_json(VOCABULARY_JSON).colors
    palette[: len(colors)] = colors
    palette[255] = 255
    # None: a bar on terminals only.
    for index in tqdm(range(SUBSETS[subset][0]), desc=f"MiniBench {subset}", disable=None):
        drawn = scene(subset, index)
        label = Image.fromarray(drawn.label)
        label.putpalette(palette.tobytes())
        for folder, picture in ((images, Image.fromarray(drawn.image)), (labels, label)):
            # Pillow says of a full disk what it says of a bug.
            content = io.BytesIO()
            picture.save(content, "PNG")
            (folder / f"{index:06d}.png").write_bytes(content.getvalue())
