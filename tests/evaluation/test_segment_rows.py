"""Rows of segments: what they say, and that files hold them whole, equal and byte for byte."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.segment_folders import label_outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from tagclip.errors import DatasetError
from tagclip.evaluation.segment_rows import (
    FORMATS,
    ROW_GROUP,
    RowWriter,
    failed_row,
    prediction_row,
    read_metadata,
    read_rows,
    row_labels,
    row_schema,
)
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

pytest.importorskip("pyarrow")

WORDS = Vocabulary(
    "words", tuple(ClassEntry(id, name) for id, name in ((7, "cat"), (3, "ball"), (0, "snow")))
)
METADATA = {"tagclip.run": "1" * 64, "tagclip.shard": "ü"}


def outputs(height: int, width: int, seed: int, token: bool = True) -> dict[str, torch.Tensor]:
    """What a model gives for one image."""
    generator = torch.Generator().manual_seed(seed)
    size = height, width
    found = {
        "sem_seg_labels": torch.randint(-1, 3, size, generator=generator).to(torch.int16),
        "sem_seg_scores": torch.rand(size, generator=generator).half(),
    }
    return found | ({"trusty": torch.rand(size, generator=generator).half()} if token else {})


def rows(count: int, labels: bool = True) -> list[dict[str, Any]]:
    """Rows of images of many sizes; every seventh was not read."""
    return [
        failed_row(f"a/{i}.jpg", f"a/{i}.jpg: broken", labels)
        if i % 7 == 3
        else prediction_row(f"a/{i}.jpg", outputs(1 + i % 5, 1 + i % 11, i), WORDS, labels)
        for i in range(count)
    ]


def write(path: Path, content: list[dict[str, Any]], labels: bool = True) -> Path:
    """Write a file of rows."""
    name = next(name for name, suffix in FORMATS.items() if suffix == path.suffix)
    with RowWriter(path, name, labels, METADATA) as writer:
        for row in content:
            writer.write(row)
    return path


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 1000), st.booleans())
def test_a_row_says_what_pixels_say(height: int, width: int, seed: int, token: bool) -> None:
    """Against counting pixel by pixel in float64, and pycocotools for the masks."""
    found = outputs(height, width, seed, token)
    labels, scores = found["sem_seg_labels"].numpy(), found["sem_seg_scores"].double().numpy()
    row = prediction_row("x.png", found, WORDS, labels=True)
    assert (row["image_id"], row["height"], row["width"]) == ("x.png", height, width)
    assert row["error"] is None
    present = [k for k in range(3) if (labels == k).any()]
    assert [segment["name"] for segment in row["segments"]] == [WORDS.names[k] for k in present]
    assert [segment["id"] for segment in row["segments"]] == [(7, 3, 0)[k] for k in present]
    for segment, k in zip(row["segments"], present, strict=True):
        mask = labels == k
        decoded = coco_mask.decode({"size": [height, width], "counts": segment["rle"]})
        assert np.array_equal(decoded.astype(bool), mask)
        assert segment["share"] == pytest.approx(mask.mean(), abs=1e-6)
        assert segment["score"] == pytest.approx(scores[mask].mean(), abs=1e-6)
        if token:
            seen = found["trusty"].double().numpy()[mask] >= 0.5
            assert segment["trusty"] == pytest.approx(seen.mean(), abs=1e-6)
        else:
            assert segment["trusty"] is None
    assert row["other"] == pytest.approx((labels == -1).mean(), abs=1e-6)
    unseen = (found["trusty"].double().numpy() < 0.5).mean() if token else None
    assert row["unseen"] == (pytest.approx(unseen, abs=1e-6) if token else None)
    values = np.array(Image.open(io.BytesIO(row["label_png"])))
    assert np.array_equal(values, np.array([7, 3, 0, 255])[labels])
    assert np.array_equal(row_labels(row, WORDS), labels)


@pytest.mark.parametrize("suffix", FORMATS.values())
@pytest.mark.parametrize("count", [0, 1, ROW_GROUP, 2 * ROW_GROUP + 3])
@pytest.mark.parametrize("labels", [True, False])
def test_files_give_back_what_was_written(
    tmp_path: Path, suffix: str, count: int, labels: bool
) -> None:
    content = rows(count, labels)
    path = write(tmp_path / f"a{suffix}", content, labels)
    assert list(read_rows(path)) == content
    assert list(read_rows(path, ["error", "image_id"])) == [
        {"error": row["error"], "image_id": row["image_id"]} for row in content
    ]
    for first in {0, count // 2, count}:
        assert list(read_rows(path, ["image_id"], first)) == [
            {"image_id": row["image_id"]} for row in content[first:]
        ]
    assert list(read_rows(path, ["segments.share", "segments.id"])) == [
        {
            "segments": row["segments"]
            and [{"share": s["share"], "id": s["id"]} for s in row["segments"]]
        }
        for row in content
    ]
    assert read_metadata(path) == METADATA
    # Whoever writes them again, at another time and under another name.
    again = write(tmp_path / f"below/b{suffix}", content, labels)
    assert again.read_bytes() == path.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "below"}


def test_parquet_has_the_types_that_are_promised(tmp_path: Path) -> None:
    from pyarrow import parquet

    file = parquet.ParquetFile(write(tmp_path / "a.parquet", rows(2 * ROW_GROUP + 3)))
    assert file.schema_arrow.equals(row_schema(labels=True))
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [ROW_GROUP, ROW_GROUP, 3]
    assert {group.column(0).compression for group in groups} == {"ZSTD"}


def test_a_tar_is_what_webdataset_takes_for_samples(tmp_path: Path) -> None:
    with tarfile.open(write(tmp_path / "a.tar", rows(5))) as archive:
        members = archive.getmembers()
    names = [
        f"{i:06}.{kind}" for i in range(5) for kind in ("json", "png") if (i, kind) != (3, "png")
    ]
    assert [member.name for member in members] == ["__tagclip.json__", *names]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_a_failure_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", rows(3))
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="broken input"):
        name = next(name for name, end in FORMATS.items() if end == suffix)
        with RowWriter(path, name, True, METADATA) as writer:
            for row in rows(ROW_GROUP + 1):
                writer.write(row)
            raise DatasetError("broken input")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", FORMATS.values())
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "missing", "other"])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    path = write(tmp_path / f"a{suffix}", rows(100))
    whole = path.read_bytes()
    path.unlink()
    if damage == "other" and suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("photo.jpg"))
    elif damage == "other":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"x": [1]}), path)
    elif damage != "missing":
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(DatasetError) as caught:
        list(read_rows(path, ["image_id", "error"]))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("columns", [None, ["image_id", "unseen"]])
def test_a_bit_that_flips_is_no_other_value(tmp_path: Path, columns: list[str] | None) -> None:
    """Of a parquet file: pages have checksums, and names of columns are known."""
    path = write(tmp_path / "a.parquet", rows(3))
    whole, expected = path.read_bytes(), list(read_rows(path, columns))
    generator = np.random.default_rng(0)
    for place in generator.choice(len(whole), 200, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        with suppress(DatasetError):
            assert list(read_rows(path, columns)) == expected, place


def test_a_type_that_pyarrow_does_not_know(tmp_path: Path) -> None:
    """As damage to the footer makes it: integers of other widths."""
    path = write(tmp_path / "a.parquet", rows(3))
    whole = path.read_bytes()
    for place in range(len(whole) - 9, 0, -1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 32]) + whole[place + 1 :])
        try:
            list(read_rows(path))
        except DatasetError as error:
            if "ArrowNotImplementedError" in str(error):
                return
    pytest.fail("found no such damage")


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_a_name_of_a_column_that_is_damaged(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", rows(3))
    path.write_bytes(path.read_bytes().replace(b"segments", b"segmentz"))
    with pytest.raises(DatasetError, match="found another or a damaged file"):
        list(read_rows(path))


@pytest.mark.parametrize("damage", ["cut", "zeros", "header"])
def test_no_row_of_a_damaged_tar_is_passed_over(tmp_path: Path, damage: str) -> None:
    """Where a row begins, tarfile takes each of these for the end."""
    path = write(tmp_path / "a.tar", rows(100))
    with tarfile.open(path) as archive:
        start = archive.getmember("000050.json").offset
    whole = path.read_bytes()
    zeros = bytes(len(whole) - start)
    ends = {"cut": b"", "zeros": zeros, "header": b"\1" + whole[start + 1 :]}
    path.write_bytes(whole[:start] + ends[damage])
    with pytest.raises(DatasetError, match=r"a\.tar: found another or a damaged file"):
        list(read_rows(path, ["image_id", "error"]))


def test_rows_that_cannot_be_painted_are_named() -> None:
    good = prediction_row("x.png", outputs(4, 5, 0), WORDS, labels=False)
    with pytest.raises(DatasetError, match="^y.png: was not read"):
        row_labels(failed_row("y.png", "broken", labels=False), WORDS)
    with pytest.raises(DatasetError, match="^x.png: found class id 7"):
        row_labels(good, Vocabulary("words", (ClassEntry(1, "dog"),)))
    # Names that somebody has exchanged.
    names = [entry.name for entry in reversed(WORDS.classes)]
    others = [replace(entry, name=name) for entry, name in zip(WORDS.classes, names, strict=True)]
    with pytest.raises(DatasetError, match="^x.png: found class id 7, .* tagclip bulk again"):
        row_labels(good, Vocabulary("words", tuple(others)))
    with pytest.raises(DatasetError, match="^x.png: found run lengths of 20 pixels"):
        row_labels({**good, "height": 9}, WORDS)


@pytest.mark.parametrize("seed", range(3))
def test_rle_is_that_of_pycocotools(seed: int) -> None:
    generator = np.random.default_rng(seed)
    vocabulary = Vocabulary.from_names([f"class {k}" for k in range(5)])
    for case in range(40):
        size = generator.integers(1, 30, 2)
        # Noise, maps of one value, and such with few runs.
        values = generator.integers(-1, generator.integers(0, 6), size)
        labels = np.sort(values, axis=case % 2) if case % 3 else values
        row = prediction_row("a", label_outputs(labels), vocabulary, False)
        for segment in row["segments"]:
            mask = labels == vocabulary.names.index(segment["name"])
            expected = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
            assert segment["rle"] == expected
        assert len(row["segments"]) == len(set(labels.ravel().tolist()) - {-1})
