"""Images in every form that a bulk run reads, and what it wrote."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tagclip import TagCLIPPredictor
from tagclip.bulk.manifest import BulkFolder, BulkSettings, fingerprints
from tagclip.bulk.worker import BulkOptions
from tagclip.evaluation.segment_rows import RowWriter, failed_row
from tagclip.structures.vocabulary import Vocabulary

WORDS = ["cat", "zebra", "sky"]
VOCABULARY = Vocabulary.from_names(WORDS, seen=[True, False, True])
SETTINGS = BulkSettings({"model": "m", "clip": "c", "words": "w", "gate": "g"})


def write_images(root: Path, count: int, seed: int = 0) -> list[Path]:
    """Small images of several sizes: 000.png and so on."""
    generator = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        height, width = generator.integers(40, 90, 2)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(root / f"{index:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar file of members that may have one name."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_options(weights: Path, output: Path, **settings: object) -> BulkOptions:
    """What the tool makes of a checkpoint, the words `WORDS` and settings of the rows."""
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    predictor.set_vocabulary(WORDS)
    given = replace(SETTINGS, fingerprints=fingerprints(predictor), **settings)
    return BulkOptions(predictor.cfg, predictor.asked, given, output)


def open_folder(path: Path, settings: BulkSettings = SETTINGS, **options: bool) -> BulkFolder:
    """A folder that exists or not."""
    return BulkFolder(path, settings, **options)


def finish(folder: BulkFolder, *numbers: int) -> None:
    """Write files of shards, with an error as the only row."""
    for shard in (folder.shards[number] for number in numbers):
        settings = folder.settings
        path, metadata = folder.path / settings.output_of(shard), settings.metadata_of(shard)
        with RowWriter(path, settings.format, settings.labels, metadata) as writer:
            writer.write(failed_row(shard.members[0].id, "broken", settings.labels))


def content_of(folder: Path) -> dict[str, bytes]:
    """Bytes of all files, by their names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
