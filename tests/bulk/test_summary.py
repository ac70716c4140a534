"""The page of a bulk run: its numbers, its examples and what it says of failures."""

from __future__ import annotations

import io
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bulk import SETTINGS, VOCABULARY, content_of, open_folder, write_images, write_tar
from helpers.html import Page
from helpers.tiny_run import own_loggers
from PIL import Image

from tagclip.bulk.inputs import find_inputs
from tagclip.bulk.manifest import BulkFolder
from tagclip.bulk.members import shard_images
from tagclip.bulk.summary import write_summary
from tagclip.evaluation.segment_rows import RowWriter, failed_row, prediction_row
from tagclip.tools import bulk

pyarrow = pytest.importorskip("pyarrow")


def make_run(
    output: Path, inputs: Sequence[Path], shard_size: int = 2, finished: int = 99
) -> tuple[BulkFolder, dict[str, dict[str, np.ndarray]]]:
    """A folder with rows of random maps; an image whose name has "bad" in it has an error."""
    folder = open_folder(output)
    folder.plan(find_inputs([str(path) for path in inputs], output), ["in"], VOCABULARY, shard_size)
    generator, maps = np.random.default_rng(0), {}
    for shard in folder.shards[:finished]:
        path, metadata = output / SETTINGS.output_of(shard), SETTINGS.metadata_of(shard)
        with RowWriter(path, "parquet", False, metadata) as writer:
            for image in shard_images(shard):
                if "bad" in image.id:
                    writer.write(failed_row(image.id, f"{image.id}: is bad", False))
                    continue
                source = image.content
                with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as im:
                    size = im.size[::-1]
                found = {
                    "sem_seg_labels": generator.integers(-1, 2, size).astype(np.int16),
                    "sem_seg_scores": generator.random(size, np.float32),
                    "trusty": generator.random(size, np.float32) ** (1 + len(maps)),
                }
                maps[image.id] = found
                outputs = {name: torch.from_numpy(value) for name, value in found.items()}
                writer.write(prediction_row(image.id, outputs, VOCABULARY, False))
    return folder, maps


def page_of(folder: BulkFolder) -> tuple[Page, str]:
    """The page, and its words."""
    page = Page(write_summary(folder.path, folder.shards, folder.settings).read_text("utf-8"))
    return page, re.sub(r"\s+", " ", " ".join(page.words))


def test_the_numbers_are_those_of_the_maps(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 5)
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    folder, maps = make_run(tmp_path / "out", [tmp_path / "in"])
    page, words = page_of(folder)
    labels, scores, trusty = (
        np.concatenate([found[name].ravel() for found in maps.values()])
        for name in ("sem_seg_labels", "sem_seg_scores", "trusty")
    )
    assert "5 of 6 images were segmented, 1 failed; 3 of 3 shards are finished." in words
    for k, name in ((0, "cat"), (1, "★ zebra")):
        inside = labels == k
        cells = (
            f"{100 * inside.mean():.2f}", "5", f"{scores[inside].mean():.2f}",
            f"{100 * (trusty[inside] >= 0.5).mean():.1f}",
        )  # fmt: skip
        assert f"{name} {' '.join(cells)}" in words
    assert "sky 0.00 0 - -" in words
    assert f"other {100 * (labels == -1).mean():.2f}" in words
    assert "bad.png: is bad" in words
    unseen = {name: (found["trusty"] < 0.5).mean() for name, found in maps.items()}
    # The last is unseen most.
    assert f"unseen: {100 * unseen['004.png']:.1f} %" in words
    for k, name in ((0, "cat"), (1, "★ zebra")):
        shares = {i: (found["sem_seg_labels"] == k).mean() for i, found in maps.items()}
        best = max(shares, key=shares.__getitem__)
        assert re.search(rf"most {name}: {100 * shares[best]:.1f} %[^.]*\.?.{{,40}}{best}", words)
    # All five, each with its image and its segments.
    assert len(page.pictures) == 10
    widths = {max(Image.open(io.BytesIO(jpeg)).size) for jpeg in page.pictures}
    assert widths == {352}


def test_the_example_is_the_image_and_its_labels(tmp_path: Path) -> None:
    (path,) = write_images(tmp_path / "in", 1)
    Image.new("RGB", (64, 64), (200, 30, 60)).save(path)
    folder, maps = make_run(tmp_path / "out", [tmp_path / "in"])
    page, _ = page_of(folder)
    image, segments = (np.asarray(Image.open(io.BytesIO(jpeg)), int) for jpeg in page.pictures)
    assert abs(image - (200, 30, 60)).max() < 6
    labels = maps["000.png"]["sem_seg_labels"]
    # A pixel of the map is 5.5 of the picture; its middle is off the outlines.
    centers = ((np.arange(64) + 0.5) * 5.5).astype(int)
    drawn = segments[np.ix_(centers, centers)]
    means = [drawn[labels == k].mean(axis=0) for k in (0, 1)]
    expected = [0.3 * np.array([200, 30, 60]) + 0.7 * VOCABULARY.colors[k] for k in (0, 1)]
    distances = [[np.abs(m - e).mean() for e in expected] for m in means]
    assert np.argmin(distances, axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_examples_of_tars_and_parquets_are_read_again(tmp_path: Path, kind: str) -> None:
    images = write_images(tmp_path / "images", 3)
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / f"some.{kind}"
    if kind == "tar":
        write_tar(source, [(path.name, path.read_bytes()) for path in images])
    else:
        from pyarrow import parquet

        table = pyarrow.table({"image": [path.read_bytes() for path in images]})
        parquet.write_table(table, source)
    folder, _ = make_run(tmp_path / "out", [tmp_path / "in"])
    page, words = page_of(folder)
    assert len(page.pictures) == 6 and "Not drawn" not in words
    source.unlink()
    page, words = page_of(folder)
    assert not page.pictures
    assert words.count("no such") == 3 and "Not drawn" in words
    assert "3 of 3 images were segmented;" in words


def test_examples_whose_source_is_gone_or_changed(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 3)
    folder, _ = make_run(tmp_path / "out", [tmp_path / "in"])
    paths[0].unlink()
    Image.new("RGB", (30, 31)).save(paths[1])
    page, words = page_of(folder)
    assert len(page.pictures) == 2
    assert "000.png" in words and "001.png: is another image now" in words


def test_long_lists_are_cut(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(53):
        (tmp_path / "in" / f"bad-{number:02}.png").touch()
    folder, _ = make_run(tmp_path / "out", [tmp_path / "in"], shard_size=54)
    page, words = page_of(folder)
    assert "0 of 53 images were segmented, 53 failed" in words
    assert "bad-49.png: is bad" in words and "bad-50.png" not in words
    assert "And 3 more: tagclip bulk-read DIR --errors." in words
    assert not page.pictures


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 5)
    folder, _ = make_run(tmp_path / "out", [tmp_path / "in"], finished=1)
    _, words = page_of(folder)
    assert "2 of 2 images were segmented; 1 of 3 shards are finished." in words
    assert "The same command again does the others: shard-000001, shard-000002." in words


def test_equal_runs_make_equal_pages(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    folders = [make_run(tmp_path / name, [tmp_path / "in"])[0] for name in ("one", "other")]
    for folder in folders:
        page_of(folder)
    one, other = (content_of(folder.path) for folder in folders)
    assert one == other and "summary.html" in one
    before = (folders[0].path / "summary.html").stat().st_mtime_ns
    page_of(folders[0])
    assert (folders[0].path / "summary.html").stat().st_mtime_ns == before


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    peaks = []
    rng = np.random.default_rng(0)
    for rows in (300, 2400):
        (tmp_path / f"in{rows}").mkdir()
        (tmp_path / f"in{rows}" / "0.png").touch()
        folder = open_folder(tmp_path / f"out{rows}")
        inputs = find_inputs([str(tmp_path / f"in{rows}")], folder.path)
        folder.plan(inputs, ["in"], VOCABULARY)
        (shard,) = folder.shards
        path, metadata = folder.path / SETTINGS.output_of(shard), SETTINGS.metadata_of(shard)
        labels = torch.from_numpy(rng.integers(0, 3, (8, 8)).astype(np.int16))
        outputs = {"sem_seg_labels": labels, "sem_seg_scores": torch.rand(8, 8)}
        with RowWriter(path, "parquet", False, metadata) as writer:
            for number in range(rows):
                writer.write(prediction_row(f"{number}.png", outputs, VOCABULARY, False))
        page_of(folder)
        tracemalloc.start()
        page_of(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_what_was_said_of_an_image_is_not_said_again(
    weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process that works says it as the main one does, and the page is silent."""
    (tmp_path / "in").mkdir()
    deep = np.random.default_rng(0).integers(0, 65536, (50, 60)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "in" / "deep.png")
    arguments = [str(tmp_path / "in"), "--weights", str(weights), "--vocab", "cat, zebra, sky"]
    arguments += ["--output", str(tmp_path / "out"), "--processes", "1"]
    with own_loggers():
        assert bulk.main(bulk.parse_args(arguments)) == 0
    said = capfd.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "16-bit gray" in line]
    assert len(lines) == 1 and "tagclip.data.image_io" in lines[0]
    assert "1 image in 1 shard, in " in said.out


def test_the_command_writes_it(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    arguments = [str(tmp_path / "in"), "--weights", str(weights), "--vocab", "cat, zebra, sky"]
    arguments += ["--output", str(tmp_path / "out"), "--processes", "1"]
    with own_loggers():
        assert bulk.main(bulk.parse_args(arguments)) == 0
        page = (tmp_path / "out" / "summary.html").read_bytes()
        (tmp_path / "out" / "summary.html").unlink()
        assert bulk.main(bulk.parse_args(arguments)) == 0
    assert (tmp_path / "out" / "summary.html").read_bytes() == page
    assert len(Page(page.decode()).pictures) == 6
