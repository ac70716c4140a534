"""Shards: which images are done together, the same in every run of a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tagclip.bulk.inputs import InputFile, input_kind
from tagclip.evaluation.segment_folder import parse_plan

__all__ = [
    "MOST_ERRORS",
    "Shard",
    "ShardResult",
    "format_members",
    "gone_members",
    "parse_members",
    "plan_shards",
]

# Errors of a shard that are told one by one.
MOST_ERRORS = 20
_NAME = "shard-"


@dataclass(frozen=True)
class Shard:
    """What one output file is made of.

    Attributes:
        name: ``shard-000000`` and so on.
        members: its images, by code points of their ids; or one tar or parquet file.
    """

    name: str
    members: tuple[InputFile, ...]

    @property
    def kind(self) -> str:
        """``files``, ``tar`` or ``parquet``."""
        return input_kind(self.members[0].id) if len(self.members) == 1 else "files"

    @property
    def source(self) -> str:
        """Id of the tar or parquet file; "" of files."""
        return "" if self.kind == "files" else self.members[0].id

    @property
    def images(self) -> int | None:
        """How many images; None of a tar or parquet file, which must be read for it."""
        return len(self.members) if self.kind == "files" else None

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of its plan: members that changed make another one."""
        return hashlib.sha256(format_members(self.members).encode()).hexdigest()


class ShardResult(NamedTuple):
    """What became of a shard.

    Attributes:
        name: of the shard.
        images: rows that were written.
        failed: rows with an error.
        errors: the first of these, `MOST_ERRORS` at most.
        error: why there is no file of this shard; "" if there is.
    """

    name: str
    images: int = 0
    failed: int = 0
    errors: tuple[str, ...] = ()
    error: str = ""


def format_members(members: Iterable[InputFile]) -> str:
    """Return the plan of a shard: a line with size, tab and id for each member.

    Behind the size of a parquet file of paths stand a space and what says the sizes of its images.
    """
    return "".join(f"{m.size} {m.images}".rstrip() + f"\t{m.id}\n" for m in members)


def parse_members(text: str) -> tuple[InputFile, ...]:
    """Read what `format_members` wrote; the path of a member is its id.

    Raises:
        ValueError: it is another kind of text.
    """
    return tuple(InputFile(name, name, size, images) for size, images, name in parse_plan(text))


def plan_shards(files: Sequence[InputFile], known: Sequence[Shard], shard_size: int) -> list[Shard]:
    """Put every file into exactly one shard.

    Args:
        files: see `find_inputs`.
        known: shards of earlier runs, in their order.
        shard_size: images per new shard of files; a tar or parquet file is a shard of its own.

    Returns:
        The known shards with the members that they had, at their places and sizes of today; behind
        them new ones: files, then tar and parquet files.
    """
    here = {file.id: file for file in files}
    shards = [
        replace(shard, members=tuple(here.get(member.id, member) for member in shard.members))
        for shard in known
    ]
    taken = {member.id for shard in known for member in shard.members}
    new = [file for file in files if file.id not in taken]
    images = [file for file in new if input_kind(file.id) == "files"]
    groups = [tuple(images[i : i + shard_size]) for i in range(0, len(images), shard_size)]
    groups += [(file,) for file in new if input_kind(file.id) != "files"]
    start = int(shards[-1].name.removeprefix(_NAME)) + 1 if shards else 0
    shards += [Shard(f"{_NAME}{start + i:06}", group) for i, group in enumerate(groups)]
    return shards


def gone_members(files: Sequence[InputFile], shards: Sequence[Shard]) -> set[str]:
    """Ids that shards hold and no input has any more."""
    return {m.id for shard in shards for m in shard.members} - {file.id for file in files}
