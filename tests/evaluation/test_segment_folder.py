"""The folder of a bulk run, read back whole, unfinished and damaged."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.labelled_images import NAMES, label_maps, odd_vocabulary
from helpers.locks import at_work
from helpers.segment_folders import label_rows, write_segment_folder

from tagclip.errors import DatasetError, TagCLIPError, VocabularyError
from tagclip.evaluation.segment_folder import SegmentFolder, is_segment_folder
from tagclip.evaluation.segment_rows import FORMATS, failed_row

pytest.importorskip("pyarrow")

MAPS = {f"b/{number}.jpg": labels for number, labels in enumerate(label_maps())}
BROKEN = failed_row("b/broken.jpg", "b/broken.jpg: no image", labels=False)
ROWS = [*label_rows(MAPS, odd_vocabulary()), BROKEN]


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shards = [ROWS[:2], ROWS[2:3], ROWS[3:]]
    return write_segment_folder(tmp_path / "out", shards, odd_vocabulary(), request.param)


def test_what_was_written_is_read(folder: Path) -> None:
    assert is_segment_folder(folder) and not is_segment_folder(folder.parent)
    found = SegmentFolder(folder)
    assert list(found.rows()) == ROWS
    assert list(found.rows(["error"])) == [{"error": row["error"]} for row in ROWS]
    assert [file.stem for file in found.files] == ["shard-000000", "shard-000001", "shard-000002"]
    assert found.vocabulary.names == NAMES and found.manifest["shard_size"] == 1000
    # As processes of a score get it.
    found = pickle.loads(pickle.dumps(found))
    for image_id, labels in MAPS.items():
        assert np.array_equal(found.labels(image_id), labels)
        assert found.row(image_id) == next(row for row in ROWS if row["image_id"] == image_id)


@pytest.mark.parametrize(
    "columns",
    [None, ["unseen", "image_id"], ["image_id", "segments.share", "segments.id"], ["segments"]],
)
def test_a_table_has_the_same_rows(folder: Path, columns: list[str] | None) -> None:
    found = SegmentFolder(folder)
    table = found.table(columns)
    assert table.to_pylist() == list(found.rows(columns))
    if columns:
        assert table.schema.names == list(dict.fromkeys(name.split(".")[0] for name in columns))


def test_unfinished_shards_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Missing, damaged, and that of another run or with other members."""
    found = SegmentFolder(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    first, second, third = found.files
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        left = SegmentFolder(folder)
    assert left.files == [third] and left.unfinished == ["shard-000000", "shard-000001"]
    assert "2 of 3 shards not finished" in caplog.text
    assert "shard-000000, shard-000001" in caplog.text
    shutil.copy(third, first)
    assert SegmentFolder(folder).files == [third]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "run": "2" * 64}))
    left = SegmentFolder(folder)
    assert left.files == [] and list(left.rows()) == []
    with pytest.raises(DatasetError, match="out: found no finished shard"):
        left.table()


def test_a_run_that_goes_on_is_waited_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, *others = SegmentFolder(folder).files
    first.unlink()
    with caplog.at_level(logging.WARNING), at_work(folder) as process:
        found = SegmentFolder(folder)
        for file in others:
            file.unlink()
        with pytest.raises(DatasetError, match="expected one; wait until process"):
            SegmentFolder(folder).table()
    assert f"shard-000000; wait until process {process.pid} on " in caplog.text
    assert "run tagclip bulk" not in caplog.text and found.files == others
    assert SegmentFolder(folder).remedy == "run tagclip bulk again"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "found no manifest.json, expected a folder that tagclip bulk wrote"),
        ("{", "manifest.json: found another or a damaged file"),
        ("[]", "manifest.json: found another or a damaged file"),
        ('{"format": "x", "shards": [], "run": ""}', "manifest.json: found another or a damaged"),
        ('{"images": []}', "manifest.json: found another or a damaged file"),
    ],
)
def test_another_folder_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=message) as caught:
        SegmentFolder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_words(folder: Path) -> None:
    (folder / "vocabulary.json").unlink()
    with pytest.raises(TagCLIPError, match=r"vocabulary\.json: no such"):
        SegmentFolder(folder)
    (folder / "vocabulary.json").write_text("{}")
    with pytest.raises(VocabularyError, match="run tagclip bulk again with the same --output"):
        SegmentFolder(folder)


def test_what_is_not_there_is_named(folder: Path) -> None:
    found = SegmentFolder(folder)
    with pytest.raises(DatasetError, match="out: found no row of 'x.jpg' among 6 images"):
        found.labels("x.jpg")
    with pytest.raises(DatasetError, match=r"out: b/broken.jpg: was not read \(b/broken.jpg: no"):
        found.labels("b/broken.jpg")
    for column in ("color", "segments.color"):
        with pytest.raises(DatasetError, match=f"found no column '{column}', expected image_id"):
            list(found.rows(["image_id", column]))
        with pytest.raises(DatasetError, match=f"found no column '{column}', expected image_id"):
            found.table([column])


def test_rows_of_a_dataset_are_found(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = SegmentFolder(folder)
    files = [f"/data/a/b/{number}.jpg" for number in range(4)]
    expected = {file: file.removeprefix("/data/a/") for file in files}
    with caplog.at_level(logging.WARNING):
        assert found.match(files) == expected
    assert "2 rows are of no image of the dataset" in caplog.text
    assert found.match(["/elsewhere/3.jpg"]) == {"/elsewhere/3.jpg": "b/3.jpg"}
    with pytest.raises(DatasetError, match="1 of 2 images have no row, such as c/9.jpg"):
        found.match(["c/9.jpg", "c/1.jpg"])
    with pytest.raises(DatasetError, match=r"a/1\.jpg and b/1\.jpg both may be x/1\.jpg"):
        rows = label_rows({"a/1.jpg": MAPS["b/1.jpg"]}, odd_vocabulary())
        both = write_segment_folder(folder.with_name("both"), [[*rows, *ROWS]], odd_vocabulary())
        SegmentFolder(both).match(["x/1.jpg"])


def test_other_images_of_the_same_names_are_refused(folder: Path, tmp_path: Path) -> None:
    """The test images of a dataset are often called as those to validate on."""
    files = [tmp_path / "data" / "b" / f"{number}.jpg" for number in range(3)]
    files[0].parent.mkdir(parents=True)
    for size, file in enumerate(files, start=1):
        file.write_bytes(b"x" * size)
    (folder / "shards").mkdir()
    plan = folder / "shards" / "shard-000000.txt"
    # Of those that no list names, and of what was not there, names must do.
    plan.write_text("1\tb/0.jpg\n-1\tb/1.jpg\n")
    found = SegmentFolder(folder)
    assert len(found.match(map(str, files))) == 3
    plan.write_text("1\tb/0.jpg\n9\tb/1.jpg\n")
    message = r"out: 1 of 3 images are called as those .* b/1\.jpg \(2 bytes, not 9\); name the"
    with pytest.raises(DatasetError, match=message.replace("b/1", ".*b/1")):
        found.match(map(str, files))
