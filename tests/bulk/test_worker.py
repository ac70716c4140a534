"""tagclip/bulk/worker.py: rows of images as the predictor segments them, whatever they lie in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.bulk import WORDS, content_of, make_options, write_images, write_tar
from helpers.full_disk import largest_file
from PIL import Image
from pyarrow import parquet

from tagclip import TagCLIPPredictor
from tagclip.bulk.inputs import find_inputs
from tagclip.bulk.manifest import BulkFolder, fingerprints
from tagclip.bulk.worker import BulkOptions, BulkWorker
from tagclip.data.prepared_image import ImagePreparer
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation.segment_rows import prediction_row, read_rows


@pytest.fixture
def options(weights: Path, tmp_path: Path) -> BulkOptions:
    return make_options(weights, tmp_path / "out", labels=True)


def plan(options: BulkOptions, *inputs: Path) -> BulkFolder:
    folder = BulkFolder(options.output, options.settings)
    files = find_inputs(list(map(str, inputs)), options.output)
    folder.plan(files, [], options.asked.shown)
    return folder


def do(options: BulkOptions, *inputs: Path) -> tuple[list[dict], list]:
    """Rows of all shards, and results."""
    worker, folder = BulkWorker(pickle.loads(pickle.dumps(options))), plan(options, *inputs)
    results = [worker.do(shard, lambda count: None) for shard in folder.shards]
    files = [options.output / options.settings.output_of(shard) for shard in folder.shards]
    return [row for file in files for row in read_rows(file)], results


def test_rows_are_those_of_the_predictor(
    options: BulkOptions, weights: Path, tmp_path: Path
) -> None:
    paths = write_images(tmp_path / "in", 5)
    rows, (result,) = do(options, tmp_path / "in")
    assert result == ("shard-000000", 5, 0, (), "")
    predictor = TagCLIPPredictor.from_checkpoint(weights)
    predictor.set_vocabulary(WORDS)
    for path, row in zip(paths, rows, strict=True):
        expected = prediction_row(path.name, predictor(path), predictor.vocabulary, True)
        assert row == expected


@pytest.mark.parametrize("memory", [1, 512 << 20])
def test_tar_and_parquet_give_the_rows_of_files(
    options: BulkOptions, tmp_path: Path, memory: int
) -> None:
    paths = write_images(tmp_path / "in", 4)
    content = [path.read_bytes() for path in paths]
    packed = tmp_path / "packed"
    packed.mkdir()
    write_tar(packed / "a.tar", list(zip((p.name for p in paths), content, strict=True)))
    parquet.write_table(pa.table({"jpg": content}), packed / "b.parquet")
    parquet.write_table(pa.table({"path": list(map(str, paths))}), packed / "c.parquet")
    expected, _ = do(options, tmp_path / "in")
    other = replace(options, output=tmp_path / "other", memory=memory, threads=3)
    rows, results = do(other, packed)
    assert [result.images for result in results] == [4, 4, 4]
    ids = [f"a.tar/{path.name}" for path in paths]
    ids += [f"{name}.parquet/{number}" for name in "bc" for number in range(4)]
    assert [row.pop("image_id") for row in rows] == ids
    assert [row.pop("image_id") for row in expected] == [path.name for path in paths]
    assert rows == expected * 3


def broken_images(root: Path) -> dict[str, str]:
    """Name -> what its row says, of images that nothing can read."""
    root.mkdir(exist_ok=True)
    (root / "cut.png").write_bytes((root / "000.png").read_bytes()[:900])
    (root / "empty.jpg").touch()
    (root / "text.gif").write_text("hello")
    (root / "link.png").symlink_to("nothing")
    Image.fromarray(np.zeros((3, 5), np.float32)).save(root / "float.tif")
    (root / "numbers.tif").write_bytes(b"II*\0" + bytes(40))
    return {
        "cut.png": "cannot decode this image",
        "empty.jpg": "cannot decode this image (it has 0 bytes)",
        "float.tif": "",
        "link.png": "no such image",
        "numbers.tif": "cannot",
        "text.gif": "cannot decode this image (5 bytes of no known image format)",
    }


def test_a_broken_image_is_a_row_among_the_others(options: BulkOptions, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    expected, _ = do(options, tmp_path / "in")
    broken = broken_images(tmp_path / "in")
    rows, (result,) = do(replace(options, output=tmp_path / "other"), tmp_path / "in")
    assert [row["image_id"] for row in rows] == sorted([*broken, "000.png", "001.png", "002.png"])
    assert [row for row in rows if row["error"] is None] == expected
    failed = {row["image_id"]: row["error"] for row in rows if row["error"] is not None}
    assert failed.keys() == broken.keys()
    for name, text in broken.items():
        # No path of this machine: the same images give the same rows anywhere.
        assert failed[name].startswith(f"{name}: {text}") and "\n" not in failed[name]
        assert str(tmp_path) not in failed[name]
        # Nor a key of datasets, which this is none.
        assert "dataset" not in failed[name] and "DATASETS" not in failed[name]
    assert (result.images, result.failed) == (9, 6)
    assert result.errors == tuple(failed[name] for name in sorted(broken))


def test_what_a_decoder_makes_of_an_image_is_not_the_end(
    options: BulkOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "in", 3)
    prepare = ImagePreparer.__call__

    def fail(self: ImagePreparer, image: object, name: str, **more: bool) -> object:
        if name == "001.png":
            raise RecursionError("too\ndeep")
        return prepare(self, image, name, **more)

    monkeypatch.setattr(ImagePreparer, "__call__", fail)
    rows, _ = do(options, tmp_path / "in")
    errors = [row["error"] for row in rows]
    assert errors[0] is errors[2] is None
    text = "001.png: cannot be read (RecursionError: too deep); replace it, or leave it out"
    assert errors[1] == text


def test_a_bad_tar_leaves_no_file_and_no_word_of_it(options: BulkOptions, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "in", 2)
    whole = write_tar(tmp_path / "a.tar", [(p.name, p.read_bytes()) for p in paths])
    whole.write_bytes(whole.read_bytes()[: paths[0].stat().st_size + 2000])
    folder, counts = plan(options, whole), []
    with pytest.raises(DatasetError, match="damaged tar file, at 001.png"):
        BulkWorker(options).do(folder.shards[0], counts.append)
    assert not list((options.output / "segments").iterdir())
    assert sum(counts) <= 1


@pytest.mark.parametrize("file_format", ["parquet", "webdataset"])
def test_a_full_disk_is_one_line_and_the_rest_stays(
    weights: Path, tmp_path: Path, file_format: str
) -> None:
    options = make_options(weights, tmp_path / "out", format=file_format)
    write_images(tmp_path / "in", 2)
    do(options, tmp_path / "in")
    before = content_of(options.output)
    write_images(tmp_path / "in", 4)
    folder, worker = plan(options, tmp_path / "in"), BulkWorker(options)
    assert [bool(folder.finished(shard)) for shard in folder.shards] == [True, False]
    with largest_file(100), pytest.raises(ConfigError) as caught:
        worker.do(folder.shards[1], lambda count: None)
    text = f"--output {options.output}: cannot be written (File too large); free space and start"
    assert str(caught.value).startswith(text)
    after = content_of(options.output)
    assert [name for name in after if "segments" in name] == [
        name for name in before if "segments" in name
    ]
    worker.do(folder.shards[1], lambda count: None)
    assert all(map(folder.finished, folder.shards))


def test_fingerprints_tell_what_changes_rows_and_nothing_else(
    weights: Path, tmp_path: Path
) -> None:
    def prints(
        *opts: object, path: Path = weights, change: Callable[..., None] = lambda predictor: None
    ) -> dict[str, str]:
        predictor = TagCLIPPredictor.from_checkpoint(path, list(map(str, opts)))
        predictor.set_vocabulary(WORDS)
        change(predictor)
        return fingerprints(predictor)

    expected = prints()
    moved = tmp_path / "moved.pth"
    moved.write_bytes(weights.read_bytes())
    for same in (
        prints(path=moved),
        prints("MODEL.TAGCLIP.TEST.WINDOW_BATCH", 1, "MODEL.TAGCLIP.TEST.WORKSPACE_MIB", 1),
        prints("OUTPUT_DIR", "elsewhere", "SEED", 9, "SOLVER.MAX_ITER", 3),
    ):
        assert same == expected
    other = torch.load(weights, weights_only=True)
    name = next(name for name, value in other["model"].items() if value.is_floating_point())
    other["model"][name] += 1
    torch.save(other, moved)
    cases = {
        "model": (prints(path=moved), prints("INPUT.MIN_SIZE_TEST", 70)),
        "words": (
            prints(change=lambda predictor: predictor.set_vocabulary(["cat", "sky", "zebra"])),
            prints(change=lambda predictor: predictor.set_vocabulary(WORDS, context=["dog"])),
            prints(change=lambda predictor: predictor.set_vocabulary(WORDS, seen=["zebra"])),
        ),
        "gate": (
            prints("MODEL.TAGCLIP.TEST.BACKGROUND_THRESHOLD", 0.2),
            prints("MODEL.TAGCLIP.TEST.SEEN_BIAS", 0.3),
            prints("TEST.DTYPE", "bfloat16"),
        ),
    }
    for name, found in cases.items():
        for each in found:
            assert {key for key in each if each[key] != expected[key]} == {name}
