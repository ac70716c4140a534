"""tagclip/bulk/manifest.py: what a folder says about its run, and when it is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.bulk import SETTINGS, VOCABULARY, content_of, finish, open_folder
from helpers.full_disk import largest_file

from tagclip.bulk import manifest as module
from tagclip.bulk.inputs import InputFile
from tagclip.bulk.manifest import BulkFolder, BulkSettings, check_ours
from tagclip.errors import ConfigError
from tagclip.evaluation.segment_rows import read_metadata
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic

FILES = [InputFile(name, f"/in/{name}", 7) for name in ("a.jpg", "b.jpg", "c.jpg", "d.tar")]


def plan(
    path: Path,
    files: list[InputFile] = FILES,
    settings: BulkSettings = SETTINGS,
    size: int | None = None,
    **options: bool,
) -> BulkFolder:
    folder = open_folder(path, settings, **options)
    folder.plan(files, ["in"], VOCABULARY, size)
    return folder


def names(folder: BulkFolder) -> list[list[str]]:
    return [[member.id for member in shard.members] for shard in folder.shards]


def manifest(path: Path) -> dict:
    return json.loads((path / "manifest.json").read_text())


def test_the_manifest_says_all_and_nothing_of_the_machine(tmp_path: Path) -> None:
    folder = plan(tmp_path, size=2)
    assert names(folder) == [["a.jpg", "b.jpg"], ["c.jpg"], ["d.tar"]]
    prints = [shard.fingerprint for shard in folder.shards]
    rows = [("files", "", 2), ("files", "", 1), ("tar", "d.tar", None)]
    assert manifest(tmp_path) == {
        "version": 1,
        "tagclip": SETTINGS.tagclip,
        "fingerprints": {"model": "m", "clip": "c", "words": "w", "gate": "g"},
        "run": SETTINGS.run,
        "inputs": ["in"],
        "format": "parquet",
        "labels": False,
        "column": "",
        "id_column": "",
        "shard_size": 2,
        "shards": [
            {
                "name": f"shard-{number:06}",
                "kind": kind,
                "source": source,
                "images": images,
                "fingerprint": prints[number],
            }
            for number, (kind, source, images) in enumerate(rows)
        ],
        "list": hashlib.sha256("".join(prints).encode()).hexdigest(),
    }
    assert prints[0] == hashlib.sha256(b"7\ta.jpg\n7\tb.jpg\n").hexdigest()
    assert (tmp_path / "shards" / "shard-000000.txt").read_bytes() == b"7\ta.jpg\n7\tb.jpg\n"
    saved = Vocabulary.from_json(tmp_path / "vocabulary.json")
    assert saved.names == VOCABULARY.names and saved.seen == VOCABULARY.seen
    folder.set_counts({"shard-000002": 5})
    assert manifest(tmp_path)["shards"][2]["images"] == 5


def test_a_run_goes_on(tmp_path: Path) -> None:
    finish(plan(tmp_path, size=2), 0)
    before = content_of(tmp_path)
    folder = plan(tmp_path)
    assert content_of(tmp_path) == before
    assert [folder.finished(shard) is not None for shard in folder.shards] == [True, False, False]
    result = folder.finished(folder.shards[0])
    assert result == ("shard-000000", 1, 1, ("broken",), "")
    metadata = read_metadata(tmp_path / "segments" / "shard-000000.parquet")
    assert metadata["tagclip.run"] == SETTINGS.run
    assert metadata["tagclip.shard"] == folder.shards[0].fingerprint


def test_files_that_are_added_make_new_shards(tmp_path: Path) -> None:
    finish(plan(tmp_path, size=2), 0, 1, 2)
    more = [InputFile(name, name, 1) for name in ("0.jpg", "aa.jpg", "z.jpg", "0.tar")]
    folder = plan(tmp_path, sorted([*FILES, *more]))
    added = [["0.jpg", "aa.jpg"], ["z.jpg"], ["0.tar"]]
    assert names(folder) == [["a.jpg", "b.jpg"], ["c.jpg"], ["d.tar"], *added]
    assert [bool(folder.finished(shard)) for shard in folder.shards] == [True] * 3 + [False] * 3
    # --shard-size is that of new shards.
    finish(folder, 3, 4, 5)
    more += [InputFile(f"{name}.png", name, 1) for name in "123"]
    assert names(plan(tmp_path, sorted([*FILES, *more]), size=3))[6:] == [
        ["1.png", "2.png", "3.png"]
    ]


def test_a_shard_size_without_new_inputs_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finish(plan(tmp_path, size=2), 0)
    before = content_of(tmp_path)
    with caplog.at_level(logging.INFO):
        plan(tmp_path, size=2)
        assert not caplog.messages
        plan(tmp_path, size=3)
    said = "--shard-size 3: no input is new, the shards of this run keep their size of 2"
    assert caplog.messages == [said] and content_of(tmp_path) == before
    caplog.clear()
    plan(tmp_path, [*FILES, InputFile("e.jpg", "/in/e.jpg", 7)], size=3)
    assert not caplog.messages and manifest(tmp_path)["shard_size"] == 3


def test_a_file_of_another_size_is_done_again_with_its_shard(tmp_path: Path) -> None:
    finish(plan(tmp_path, size=2), 0, 1, 2)
    folder = plan(tmp_path, [FILES[0]._replace(size=8), *FILES[1:3], FILES[3]._replace(size=8)])
    assert [bool(folder.finished(shard)) for shard in folder.shards] == [False, True, False]


def test_rows_of_files_that_are_gone_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish(plan(tmp_path, size=2), 0)
    with caplog.at_level(logging.WARNING):
        folder = plan(tmp_path, FILES[1:2])
    # What was not done and is gone as a whole can be no error for ever.
    assert names(folder) == [["a.jpg", "b.jpg"]]
    assert folder.finished(folder.shards[0])
    (line,) = caplog.messages
    assert line.startswith("3 inputs of earlier runs are gone; rows") and "a.jpg, c.jpg" in line
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["shard-000000.txt"]
    # Its error, of a.jpg, needs no mending any more.
    assert folder.finished(folder.shards[0]).failed == 0
    assert plan(tmp_path).finished(folder.shards[0]).failed == 1
    # Back again, the others are new.
    assert names(plan(tmp_path))[1:] == [["c.jpg"], ["d.tar"]]


def test_other_inputs_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their images may have the ids of those of before, whose rows they would replace."""
    plan(tmp_path)
    for inputs in (["in"], ["in", "more"]):
        open_folder(tmp_path, SETTINGS).plan(FILES, inputs, VOCABULARY)
        assert not caplog.messages
    open_folder(tmp_path, SETTINGS).plan(FILES, ["other", "more"], VOCABULARY)
    (line,) = caplog.messages
    said = f"--output {tmp_path}: was begun with in, more, now with other, more: an image takes"
    assert line.startswith(said)
    assert manifest(tmp_path)["inputs"] == ["other", "more"]


def test_what_is_gone_is_no_part_of_a_shard_that_is_still_to_be_done(tmp_path: Path) -> None:
    finish(plan(tmp_path, size=3), 0)
    # Another size: the shard is done again, without b.jpg.
    folder = plan(tmp_path, [FILES[0]._replace(size=8), FILES[2]])
    assert names(folder) == [["a.jpg", "c.jpg"]]
    assert folder.finished(folder.shards[0]) is None
    assert names(plan(tmp_path)) == [["a.jpg", "c.jpg"], ["b.jpg"], ["d.tar"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprints": {**SETTINGS.fingerprints, "words": "x", "gate": "x"}}, "words, gate"),
        ({"format": "webdataset"}, "format"),
        ({"labels": True, "column": "x", "id_column": "y"}, "labels, column, id_column"),
        ({"tagclip": "9"}, "tagclip's version"),
    ],
)
def test_another_run_is_refused_unless_told(tmp_path: Path, change: dict, said: str) -> None:
    finish(plan(tmp_path), 0)
    before = content_of(tmp_path)
    other = replace(SETTINGS, **change)
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, settings=other)
    assert str(caught.value) == (
        f"--output {tmp_path}: found a run that differs in {said}, expected the same; choose "
        "another folder, or --overwrite, which does all of it again"
    )
    assert content_of(tmp_path) == before
    folder = plan(tmp_path, settings=other, overwrite=True)
    assert not list((tmp_path / "segments").iterdir())
    assert manifest(tmp_path)["run"] == other.run
    assert not any(map(folder.finished, folder.shards))


def test_a_run_without_results_keeps_nobody_out(tmp_path: Path) -> None:
    plan(tmp_path, size=1)
    folder = plan(tmp_path, FILES[:1], replace(SETTINGS, column="img"))
    assert names(folder) == [["a.jpg"]]
    assert len(list((tmp_path / "shards").iterdir())) == 1


def test_overwriting_that_was_broken_off_is_refused_until_it_is_told_again(tmp_path: Path) -> None:
    finish(plan(tmp_path, size=1), 0, 1)
    other = replace(SETTINGS, labels=True)
    (tmp_path / "segments" / "shard-000000.parquet").unlink()
    with pytest.raises(ConfigError, match="differs in labels"):
        plan(tmp_path, settings=other)
    assert names(plan(tmp_path, settings=other, overwrite=True, size=9))[0][2] == "c.jpg"


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"version": 2, "shards": []}', '{"version": 1, "shards": [1]}'),
        '{"version": 1, "shards": [], "fingerprints": null}',
        '{"version": 1, "shards": [], "shard_size": "9"}',
        '{"version": 1, "shards": [], "shard_size": -1}',
        '{"version": 1, "shards": [{"name": "other", "images": 1}]}',
        '{"version": 1, "shards": [{"name": "shard-x/../../a", "images": 1}]}',
        '{"version": 1, "shards": [{"name": 7, "images": 1}]}',
        '{"version": 1, "shards": [{"name": "shard-000001", "images": 1},'
        ' {"name": "shard-000000", "images": 1}]}',
    ],
)
def test_a_manifest_of_another_kind_is_refused_even_if_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="manifest.json of another kind") as caught:
            plan(tmp_path, overwrite=overwrite)
        assert "\n" not in str(caught.value)
    assert content_of(tmp_path) == {"manifest.json": text.encode()}


def test_rows_without_a_manifest_are_not_touched(tmp_path: Path) -> None:
    finish(plan(tmp_path), 0)
    (tmp_path / "manifest.json").unlink()
    before = content_of(tmp_path)
    with pytest.raises(ConfigError, match="a folder segments without manifest.json"):
        plan(tmp_path)
    assert content_of(tmp_path) == before


def remove(path: Path) -> None:
    path.unlink()


def damage(path: Path) -> None:
    path.write_bytes(b"\xff\n")


@pytest.mark.parametrize("change", [remove, damage])
def test_a_lost_list_is_named(tmp_path: Path, change: Callable[[Path], None]) -> None:
    finish(plan(tmp_path), 0)
    path = tmp_path / "shards" / "shard-000001.txt"
    change(path)
    with pytest.raises(ConfigError, match="shard-000001.txt: found no list of images"):
        plan(tmp_path)
    plan(tmp_path, overwrite=True)


def test_a_damaged_file_of_rows_is_done_again(tmp_path: Path) -> None:
    folder = plan(tmp_path)
    finish(folder, 0)
    path = tmp_path / "segments" / "shard-000000.parquet"
    content = path.read_bytes()
    for damaged in (b"", content[:-9], b"x" * 99):
        path.write_bytes(damaged)
        assert folder.finished(folder.shards[0]) is None


def test_a_kill_between_any_two_files_of_the_plan_changes_nothing(tmp_path: Path) -> None:
    """The manifest comes last; what lies there without it is written anew."""
    plan(tmp_path / "whole", size=1)
    expected = content_of(tmp_path / "whole")
    order = sorted(expected, key=lambda name: (name == "manifest.json", name))
    for count in range(len(order)):
        half = tmp_path / f"half{count}"
        for name in order[:count]:
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            (half / name).write_bytes(expected[name])
        (half / "segments").mkdir(parents=True, exist_ok=True)
        (half / "segments" / ".shard-000000.parquet.0a1b2c3d.tmp").touch()
        plan(half, size=1)
        assert content_of(half) == expected


def breaking_off(count: int, error: BaseException) -> Callable[[Path, str], Path]:
    """Write so many files, and then fail."""
    left = iter(range(count))

    def write(file: Path, text: str) -> Path:
        if next(left, None) is None:
            raise error
        return write_atomic(file, text)

    return write


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_while_another_run_is_planned_puts_no_image_into_two_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    other, count = replace(SETTINGS, labels=True), 0
    while True:
        path = tmp_path / f"after{count}"
        folder = plan(path, size=1)
        finish(folder, *([2] if overwrite else []))
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomic", breaking_off(count, KeyboardInterrupt()))
            try:
                plan(path, settings=other, size=3, overwrite=overwrite)
                break
            except KeyboardInterrupt:
                pass
        for settings in (SETTINGS, other):
            ids = [name for group in names(plan(path, settings=settings)) for name in group]
            assert sorted(ids) == [file.id for file in FILES]
        count += 1
    # Two lists, the vocabulary, the manifest.
    assert count == 4


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_plan_that_breaks_off_leaves_a_folder_that_is_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool, error: BaseException
) -> None:
    """Whichever file fails: nobody else's files are there, and the same command goes on."""
    plan(tmp_path / "whole", size=1)
    expected, failed = content_of(tmp_path / "whole"), 0
    for count in range(len(expected)):
        path = tmp_path / f"after{count}"
        if not is_new:
            finish(plan(path, FILES[:2], size=1), 0)
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomic", breaking_off(count, error))
            try:
                plan(path, size=1)
            except (KeyboardInterrupt, ConfigError):
                failed += 1
        check_ours(path)
        assert not is_new or not any(path.iterdir())
        folder = plan(path, size=1)
        assert names(folder) == [[file.id] for file in FILES]
        assert (folder.finished(folder.shards[0]) is not None) == (not is_new)
    # Of a run that goes on two lists, the vocabulary is there.
    assert failed == (6 if is_new else 3)


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with largest_file(10), pytest.raises(ConfigError) as caught:
        plan(tmp_path)
    expected = f"--output {tmp_path}: cannot be written (File too large); free space and start"
    assert str(caught.value).startswith(expected)
    plan(tmp_path)
