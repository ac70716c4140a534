"""The folder of a bulk run: what it was made with, its shards, and which of them are finished."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tagclip import __version__
from tagclip.bulk.inputs import InputFile
from tagclip.bulk.shards import (
    MOST_ERRORS,
    Shard,
    ShardResult,
    format_members,
    gone_members,
    parse_members,
    plan_shards,
)
from tagclip.checkpoint.identity import config_hash
from tagclip.data.class_tables import ClassTable, vocabulary_text
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation.segment_folder import (
    MANIFEST,
    PLANS,
    ROWS,
    VOCABULARY,
    shard_metadata,
    shard_path,
)
from tagclip.evaluation.segment_rows import FORMATS, read_metadata, read_rows
from tagclip.modeling.clip.weights import file_sha256
from tagclip.predictor import TagCLIPPredictor
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.cli import writing
from tagclip.utils.files import remove_leftovers, write_atomic
from tagclip.utils.run_lock import LOCK_NAME
from tagclip.utils.text import json_text, listed
from tagclip.utils.untrusted import load_json

__all__ = [
    "OWN_NAMES",
    "SUMMARY",
    "BulkFolder",
    "BulkSettings",
    "check_ours",
    "fingerprints",
    "writing_output",
]

logger = logging.getLogger(__name__)

_VERSION = 1
SUMMARY = "summary.html"
# In the folder of a run, but for the lock.
OWN_NAMES = (MANIFEST, VOCABULARY, PLANS, ROWS, SUMMARY)
_SHARD_NAME = re.compile(r"shard-[0-9]{6,}")
# Time and memory only.
_NO_RESULT = ("WINDOW_BATCH", "WORKSPACE_MIB")


@dataclass(frozen=True)
class BulkSettings:
    """All that rows depend on, but their images.

    Attributes:
        fingerprints: see `fingerprints`.
        format: a key of `FORMATS`.
        labels: whether rows hold label PNGs.
        column: of parquet files, what holds the images; "": the first that is there.
        id_column: of parquet files, what ends the ids; "": numbers of the rows.
        tagclip: version.
    """

    fingerprints: Mapping[str, str]
    format: str = "parquet"
    labels: bool = False
    column: str = ""
    id_column: str = ""
    tagclip: str = field(default=__version__)

    @property
    def run(self) -> str:
        """sha256 (hex) of it."""
        return hashlib.sha256(json_text(asdict(self), sort_keys=True).encode()).hexdigest()

    def output_of(self, shard: Shard) -> Path:
        """The file of a shard's rows, below the folder of the run."""
        return shard_path(shard.name, self.format)

    def metadata_of(self, shard: Shard) -> dict[str, str]:
        """What that file says about itself, see `shard_metadata`."""
        return shard_metadata(self.run, shard.fingerprint)


def fingerprints(predictor: TagCLIPPredictor) -> dict[str, str]:
    """sha256 (hex) of model, CLIP, words and gate, which holds all of windows and scores, too.

    Paths, and what changes time and memory only, do not count.

    Args:
        predictor: with the vocabulary that is asked, on any device.
    """
    cfg, model, asked = predictor.cfg.clone(), predictor.model, predictor.asked
    cfg.defrost()
    test = dict(cfg.MODEL.TAGCLIP.pop("TEST"))
    gate = {key: value for key, value in test.items() if key not in _NO_RESULT}
    for name in [name for name in cfg if name not in ("MODEL", "INPUT")]:
        del cfg[name]
    weights = Path(predictor.cfg.MODEL.WEIGHTS)
    checkpoint = file_sha256(weights) if predictor.cfg.MODEL.WEIGHTS else ""
    words = asked.shown.partition_fingerprint, asked.all.partition_fingerprint
    content = {
        "model": [checkpoint, config_hash(cfg)],
        "clip": model.backbone.weights_sha256,
        "words": [*words, model.text_bank.fingerprint(asked.all)],
        "gate": [gate, predictor.cfg.TEST.DTYPE],
    }
    return {
        name: hashlib.sha256(json_text(parts, sort_keys=True).encode()).hexdigest()
        for name, parts in content.items()
    }


def writing_output(folder: Path) -> AbstractContextManager[None]:
    """Say in one line that the folder of a run cannot be written, see `writing`."""
    return writing("--output", folder, "free space and start again: finished shards stay")


def check_ours(folder: Path) -> None:
    """Refuse a folder that holds files of others under the names of a run's.

    Raises:
        ConfigError: names one. Where a run was killed before its manifest, its lock file is there.
    """
    if any((folder / name).exists() for name in (MANIFEST, LOCK_NAME)):
        return
    for name in OWN_NAMES:
        if (folder / name).exists():
            raise ConfigError(
                f"--output {folder}: found {name} and no {MANIFEST}, expected a new folder or "
                "that of an earlier bulk run; choose another folder"
            )


class BulkFolder:
    """A folder for the results of one run, which may go on at any time.

    Attributes:
        path: the folder.
        settings: of the run.
        shards: see `plan`.
    """

    def __init__(self, path: Path, settings: BulkSettings, overwrite: bool = False) -> None:
        """Look at what is there; nothing is created.

        Args:
            path: may be missing. Nobody else may be writing there (`tagclip.utils.run_lock`).
            settings: of the run.
            overwrite: remove the results of an earlier run, whatever its settings.

        Raises:
            ConfigError: it holds a run with other settings, or something else.
        """
        self.path, self.settings = path, settings
        self.shards: list[Shard] = []
        self._counts: dict[str, int | None] = {}
        self._shard_size = 0
        self._gone: set[str] = set()
        self._inputs: list[str] = []
        tree = self._read()
        if tree is not None and (overwrite or not self._is_same(tree)):
            self._clear()
        elif tree is not None:
            self._shard_size, self._inputs = tree["shard_size"], list(tree["inputs"])
            self._counts = {row["name"]: row["images"] for row in tree["shards"]}
            self.shards = [self._read_shard(row["name"]) for row in tree["shards"]]

    def plan(
        self,
        files: Sequence[InputFile],
        inputs: Sequence[str],
        vocabulary: Vocabulary,
        shard_size: int | None = None,
    ) -> None:
        """Decide on the shards and write what the folder says about itself.

        Args:
            files: see `find_inputs`.
            inputs: as they were given.
            vocabulary: the classes of the rows.
            shard_size: of new shards; None: that of the run, or 1000. Without new ones it says
                nothing, which is logged.

        Raises:
            ConfigError: the folder cannot be written.
        """
        known, old_size = len(self.shards), self._shard_size
        self._shard_size = shard_size or old_size or 1000
        self.shards = plan_shards(files, self.shards, self._shard_size)
        if old_size and self._shard_size != old_size and len(self.shards) == known:
            logger.info(
                "--shard-size %d: no input is new, the shards of this run keep their size of %d",
                self._shard_size, old_size,
            )  # fmt: skip
            self._shard_size = old_size
        self._gone = gone_members(files, self.shards)
        if self._gone:
            logger.warning(
                "%d inputs of earlier runs are gone; rows that there are of them stay: %s",
                len(self._gone), listed(sorted(self._gone), 3),
            )  # fmt: skip
            self.shards = [left for shard in self.shards if (left := self._still_there(shard))]
        if not set(self._inputs) <= set(inputs):
            logger.warning(
                "--output %s: was begun with %s, now with %s: an image takes the place of one of "
                "the same id, or is taken for it if their sizes are equal; give other images an "
                "--output of their own", self.path, listed(self._inputs, 3), listed(inputs, 3),
            )  # fmt: skip
        self._inputs = list(inputs)
        with writing_output(self.path), self._begun():
            (self.path / ROWS).mkdir(parents=True, exist_ok=True)
            self.remove_leftovers()
            for shard in self.shards:
                self._write(f"{PLANS}/{shard.name}.txt", format_members(shard.members))
            self._write(VOCABULARY, _vocabulary_text(vocabulary))
            # Behind what it names, and before what it no longer names.
            self._write_manifest()
            names = {f"{shard.name}.txt" for shard in self.shards}
            for path in (self.path / PLANS).glob("shard-*.txt"):
                if path.name not in names:
                    path.unlink()

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Leave nothing of a run that breaks off before its manifest: it would not be known again.

        A killed one leaves its lock, by which it is known.
        """
        try:
            yield
        except BaseException:
            if not (self.path / MANIFEST).exists():
                self._remove_plan()
            raise

    def _remove_plan(self) -> None:
        shutil.rmtree(self.path / PLANS, ignore_errors=True)
        with suppress(OSError):
            (self.path / VOCABULARY).unlink(missing_ok=True)
            (self.path / ROWS).rmdir()

    def remove_leftovers(self) -> None:
        """Remove what killed processes left half-written."""
        for folder in (self.path, self.path / PLANS, self.path / ROWS):
            remove_leftovers(folder, "*")

    def finished(self, shard: Shard) -> ShardResult | None:
        """What an earlier run made of a shard.

        None if its file is missing, damaged, or of another run or other members.
        """
        path = self.path / self.settings.output_of(shard)
        metadata = self.settings.metadata_of(shard)
        try:
            if not path.is_file() or not metadata.items() <= read_metadata(path).items():
                return None
            rows = list(read_rows(path, ["image_id", "error"]))
        except DatasetError as error:
            logger.warning("%s: done again: %s", shard.name, error)
            return None
        # What is gone needs no mending.
        errors = tuple(
            row["error"]
            for row in rows
            if row["error"] is not None and self._gone.isdisjoint((row["image_id"], shard.source))
        )
        return ShardResult(shard.name, len(rows), len(errors), errors[:MOST_ERRORS])

    def set_counts(self, counts: Mapping[str, int]) -> None:
        """Say how many images shards have whose files had to be read for it.

        Args:
            counts: by name of the shard.

        Raises:
            ConfigError: the folder cannot be written.
        """
        self._counts |= counts
        with writing_output(self.path):
            self._write_manifest()

    def _still_there(self, shard: Shard) -> Shard | None:
        """A shard without what is gone, unless it is finished; None if nothing is left of it."""
        left = tuple(member for member in shard.members if member.id not in self._gone)
        if left == shard.members or self.finished(shard):
            return shard
        return replace(shard, members=left) if left else None

    def _write_manifest(self) -> None:
        settings = asdict(self.settings)
        rows = [
            {
                "name": shard.name,
                "kind": shard.kind,
                "source": shard.source,
                "images": shard.images or self._counts.get(shard.name),
                "fingerprint": shard.fingerprint,
            }
            for shard in self.shards
        ]
        text = "".join(row["fingerprint"] for row in rows)
        tree = {
            "version": _VERSION,
            "tagclip": settings.pop("tagclip"),
            "fingerprints": settings.pop("fingerprints"),
            "run": self.settings.run,
            "inputs": self._inputs,
            **settings,
            "shard_size": self._shard_size,
            "shards": rows,
            "list": hashlib.sha256(text.encode()).hexdigest(),
        }
        self._write(MANIFEST, json_text(tree, indent=1) + "\n")

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        # A run that goes on leaves most of them as they are.
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomic(path, text)

    def _read(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST
        if not path.exists():
            if any(self._files()):
                raise ConfigError(
                    f"--output {self.path}: found a folder {ROWS} without {MANIFEST}, expected "
                    "an earlier bulk run, or none; choose another folder"
                )
            return None
        try:
            tree = load_json(path.read_text("utf-8"))
            if tree["version"] != _VERSION:
                raise ValueError(f"version {tree['version']}")
            tree = {"tagclip": "", "shard_size": 0, "fingerprints": {}, "inputs": [], **tree}
            names = [row["name"] for row in tree["shards"] if "images" in row]
            is_ours = (
                len(names) == len(tree["shards"])
                # In the order of their numbers, and none twice.
                and names == sorted({*names}, key=lambda name: (len(name), name))
                and all(_SHARD_NAME.fullmatch(name) for name in names)
                and isinstance(tree["fingerprints"], dict)
                and all(isinstance(text, str) for text in tree["inputs"])
                and type(tree["shard_size"]) is int
                and tree["shard_size"] >= 0
            )
            if not is_ours:
                raise ValueError("values that no run writes")
            return tree
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"--output {self.path}: found a {MANIFEST} of another kind, expected that of an "
                "earlier bulk run, or none; choose another folder"
            ) from error

    def _is_same(self, tree: Mapping[str, Any]) -> bool:
        """Whether the run there has these settings; one that has not must have no results."""
        if tree.get("run") == self.settings.run:
            return True
        if not any(self._files()):
            return False
        ours = asdict(self.settings)
        ours |= ours.pop("fingerprints")
        theirs = {**tree, **tree["fingerprints"]}
        names = [name for name in ours if theirs.get(name) != ours[name]]
        names = ["tagclip's version" if name == "tagclip" else name for name in names]
        raise ConfigError(
            f"--output {self.path}: found a run that differs in {listed(names, 9)}, expected the "
            "same; choose another folder, or --overwrite, which does all of it again"
        )

    def _read_shard(self, name: str) -> Shard:
        path = self.path / PLANS / f"{name}.txt"
        try:
            members = parse_members(path.read_bytes().decode())
            if members:
                return Shard(name, members)
        except (OSError, ValueError) as error:
            logger.debug("%s: %s", path, error)
        raise ConfigError(
            f"{path}: found no list of images, expected that of an earlier run; bring it back, "
            "choose another --output, or --overwrite, which does all of it again"
        )

    def _clear(self) -> None:
        """Remove results, and then what names them."""
        with writing_output(self.path), self._begun():
            for path in (*self._files(), self.path / MANIFEST):
                path.unlink()
            self._remove_plan()

    def _files(self) -> Iterator[Path]:
        """Files of rows, of whatever run."""
        for suffix in FORMATS.values():
            yield from self.path.glob(f"{ROWS}/shard-*{suffix}")


def _vocabulary_text(vocabulary: Vocabulary) -> str:
    """A vocabulary json with the seen classes as a split."""
    tree = load_json(vocabulary_text(ClassTable.of(vocabulary)))
    if vocabulary.seen is not None:
        split = vocabulary.split or "asked"
        tree |= {"default_split": split, "splits": {split: {"unseen": vocabulary.unseen_names}}}
    return json_text(tree, indent=1) + "\n"
