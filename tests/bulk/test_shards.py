"""tagclip/bulk/shards.py: every input in one shard, and the same one in every run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagclip.bulk.inputs import InputFile
from tagclip.bulk.shards import (
    Shard,
    format_members,
    gone_members,
    parse_members,
    plan_shards,
)

IDS = st.text(st.characters(blacklist_characters="\0\n", blacklist_categories=["Cs"]), min_size=1)
SUFFIXES = st.sampled_from([".jpg", ".tar", ".parquet", ".tar.gz", ""])
FILES = st.dictionaries(
    st.builds(lambda name, suffix: name + suffix, IDS, SUFFIXES), st.integers(0, 9), max_size=30
).map(lambda sizes: [InputFile(name, f"/in/{name}", sizes[name]) for name in sorted(sizes)])


def fingerprints(shards: list[Shard]) -> list[str]:
    return [shard.fingerprint for shard in shards]


def known(shards: list[Shard]) -> list[Shard]:
    """What a later run reads from the folder of an earlier one."""
    return [
        Shard(shard.name, parse_members(format_members(shard.members).encode().decode()))
        for shard in shards
    ]


@given(FILES, st.integers(1, 7))
def test_every_file_is_in_one_shard_in_order(files: list[InputFile], size: int) -> None:
    shards = plan_shards(files, [], size)
    assert [shard.name for shard in shards] == [f"shard-{i:06}" for i in range(len(shards))]
    members = [member for shard in shards for member in shard.members]
    assert sorted(members) == files
    images = [shard for shard in shards if shard.kind == "files"]
    assert [m for shard in images for m in shard.members] == [
        file for file in files if not file.id.lower().endswith((".tar", ".tar.gz", ".parquet"))
    ]
    assert all(len(shard.members) == size for shard in images[:-1])
    assert all(1 <= len(shard.members) <= size for shard in images)
    assert shards[: len(images)] == images
    assert all(shard.source == shard.members[0].id for shard in shards[len(images) :])


@given(FILES, FILES, st.integers(1, 7), st.integers(1, 7))
def test_added_files_change_no_known_shard(
    files: list[InputFile], more: list[InputFile], size: int, later: int
) -> None:
    before = plan_shards(files, [], size)
    here = {file.id for file in files}
    together = sorted([*files, *(file for file in more if file.id not in here)])
    after = plan_shards(together, known(before), later)
    assert after[: len(before)] == before
    assert fingerprints(after[: len(before)]) == fingerprints(before)
    assert sorted(member for shard in after for member in shard.members) == together
    # And again: nothing is left to plan.
    assert plan_shards(together, known(after), size) == after


@given(FILES, st.data(), st.integers(1, 7))
def test_another_size_changes_the_fingerprint_of_its_shard_alone(
    files: list[InputFile], data: st.DataObject, size: int
) -> None:
    before = plan_shards(files, [], size)
    if not files:
        return
    chosen = data.draw(st.sampled_from(files))
    changed = [replace_size(file) if file == chosen else file for file in files]
    after = plan_shards(changed, known(before), size)
    differ = [
        old.name
        for old, new in zip(before, after, strict=True)
        if old.fingerprint != new.fingerprint
    ]
    assert differ == [shard.name for shard in before if chosen in shard.members]


def replace_size(file: InputFile) -> InputFile:
    return file._replace(size=file.size + 1)


@given(FILES, FILES, st.integers(1, 7))
def test_gone_files_stay_members_and_are_named(
    files: list[InputFile], left: list[InputFile], size: int
) -> None:
    before = plan_shards(files, [], size)
    stay = {file.id for file in left}
    left = [file for file in files if file.id in stay]
    after = plan_shards(left, known(before), size)
    assert fingerprints(after) == fingerprints(before)
    assert gone_members(left, after) == {file.id for file in files if file.id not in stay}


def test_numbers_of_shards_that_are_gone_are_not_given_again() -> None:
    files = [InputFile(f"{index}.jpg", "", 1) for index in range(4)]
    before = plan_shards(files[:3], [], 1)
    after = plan_shards(files, [before[0], before[2]], 1)
    assert [shard.name for shard in after] == ["shard-000000", "shard-000002"] + [
        "shard-000003",
        "shard-000004",
    ]


def test_a_plan_is_readable() -> None:
    members = (InputFile("a\tb.jpg", "/x/a\tb.jpg", 7), InputFile("é.jpg", "/x/é.jpg", -1))
    assert format_members(members) == "7\ta\tb.jpg\n-1\té.jpg\n"
    assert [m._replace(path="") for m in parse_members(format_members(members))] == [
        m._replace(path="") for m in members
    ]
    archive = (InputFile("t.parquet", "t.parquet", 7, "0a1b"),)
    assert format_members(archive) == "7 0a1b\tt.parquet\n"
    assert parse_members("7 0a1b\tt.parquet\n") == archive
    for text in ("a.jpg\n", "x\ta.jpg\n", "\n"):
        with pytest.raises(ValueError):
            parse_members(text)


def test_one_image_alone_is_no_archive() -> None:
    shard = Shard("shard-000000", (InputFile("a.jpg", "a.jpg", 1),))
    assert (shard.kind, shard.source, shard.images) == ("files", "", 1)
    tar = replace(shard, members=(InputFile("a.tar", "a.tar", 1),))
    assert (tar.kind, tar.source, tar.images) == ("tar", "a.tar", None)
    assert tar.fingerprint != shard.fingerprint
