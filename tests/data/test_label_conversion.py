"""Masks of every kind become the same label files; what has no meaning is counted."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tagclip.data.label_conversion import Conversion, MaskFile, count_mask, write_label
from tagclip.data.label_image import index_png
from tagclip.data.raster import Raster, read_raster
from tagclip.errors import DatasetError

COLORS = np.array([[0, 0, 0], [194, 178, 128], [220, 20, 60], [255, 255, 255]], np.uint8)
# The last colour is what is unlabelled.
PAIRS = tuple((tuple(c), v) for c, v in zip(COLORS.tolist(), (0, 1, 2, 255), strict=True))
IDS = np.random.default_rng(0).integers(0, 4, (9, 14)).astype(np.uint8)
EXPECTED = np.array([0, 1, 2, 255])[IDS]
ORDER = np.array([2, 0, 3, 1], np.uint8)


def conversion(**changes: object) -> Conversion:
    options = {
        "colors": PAIRS,
        "values": {0: 0, 1: 1, 2: 2, 255: 255},
        "kind": "",
        "threshold": None,
        "ignore_label": 255,
        "ignore_unknown": False,
        "palette": {v: c for c, v in PAIRS},
        "overwrite": False,
    }
    return Conversion(**{**options, **changes})


def other_order() -> Image.Image:
    """Indices that mean something else, with the right colours."""
    picture = Image.fromarray(ORDER[IDS])
    palette = np.zeros((4, 3), np.uint8)
    palette[ORDER] = COLORS
    picture.putpalette(palette.tobytes())
    return picture


def random_palette() -> Image.Image:
    picture = Image.fromarray(EXPECTED.astype(np.uint8))
    picture.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    return picture


def alpha(value: int) -> np.ndarray:
    return np.dstack([COLORS[IDS], np.full(IDS.shape, value, np.uint8)])


def cv2_png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


MASKS = {
    "RGB": Image.fromarray(COLORS[IDS]),
    "RGBA": Image.fromarray(alpha(255)),
    "palette in another order": other_order(),
    "palette of any colours": random_palette(),
    "gray": Image.fromarray(EXPECTED.astype(np.uint8)),
    "gray and alpha": Image.fromarray(EXPECTED.astype(np.uint8)).convert("LA"),
    "16-bit gray": Image.fromarray(EXPECTED.astype(np.uint16)),
    "16-bit colours": cv2_png(COLORS[IDS][..., ::-1].astype(np.uint16) * 257),
    "ids in three channels": cv2_png(np.repeat(np.minimum(IDS, 2)[..., None], 3, 2)),
}


def save(path: Path, mask: Image.Image | bytes) -> Path:
    if isinstance(mask, bytes):
        path.write_bytes(mask)
    else:
        mask.save(path)
    return path


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask(tmp_path: Path, kind: str) -> None:
    task = MaskFile(save(tmp_path / "m.png", MASKS[kind]), tmp_path / "o" / "m.png")
    done = pickle.loads(pickle.dumps(conversion()))(task)
    assert done.is_new and not done.unknown and done.output == task.output
    written = read_raster(task.output)
    three = kind == "ids in three channels"
    assert np.array_equal(written.values, np.minimum(IDS, 2) if three else EXPECTED)
    assert written.palette[2].tolist() == [220, 20, 60] and len(written.palette) == 256
    assert not conversion()(task).is_new


def test_black_and_white_are_colours_where_the_classes_say_so(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.fromarray((IDS % 2 * 255).astype(np.uint8)))
    pairs = (((0, 0, 0), 0), ((255, 255, 255), 1))
    values = {0: 0, 1: 1, 255: 255}
    # As ids they would be ignored: which of the two is meant has to be said.
    with pytest.raises(DatasetError, match=r"value 255 at .*, with the label values 255 and 1; "):
        conversion(colors=pairs, values=values).labels(read_raster(path), path)
    for options in ({"kind": "colors", "values": values}, {"values": {0: 0, 1: 1}}):
        changed = conversion(colors=pairs, **options)
        assert np.array_equal(changed.labels(read_raster(path), path)[0], IDS % 2)
    # Ids go first where both explain the file.
    swapped = (((0, 0, 0), 1), ((1, 1, 1), 0))
    gray = Raster((IDS % 2).astype(np.uint8), None)
    label, _ = conversion(colors=swapped, values=values).labels(gray, path)
    assert np.array_equal(label, IDS % 2)
    # Without colours 255 is what is unlabelled.
    label, _ = conversion(colors=(), values=values).labels(read_raster(path), path)
    assert np.array_equal(label, IDS % 2 * 255)


def test_the_kind_can_be_settled(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", other_order())
    values = {int(old): new for old, (_, new) in zip(ORDER, PAIRS, strict=True)}
    label, _ = conversion(kind="ids", values=values).labels(read_raster(path), path)
    assert np.array_equal(label, EXPECTED)
    label, unknown = conversion(kind="colors").labels(read_raster(path), path)
    assert np.array_equal(label, EXPECTED) and not unknown


def test_values_and_colours_that_disagree_are_refused(tmp_path: Path) -> None:
    path, task = tmp_path / "m.png", MaskFile(tmp_path / "m.png", tmp_path / "o.png")
    picture = Image.fromarray((2 - IDS % 3).astype(np.uint8))
    picture.putpalette(COLORS[[2, 1, 0]].tobytes())
    save(path, picture)
    message = (
        r"m\.png: value \d at .* of two classes, with the label values .* --labels ids or --labels"
    )
    with pytest.raises(DatasetError, match=message):
        conversion()(task)
    assert not task.output.exists()
    for kind, expected in (("ids", 2 - IDS % 3), ("colors", IDS % 3)):
        label, unknown = conversion(kind=kind).labels(read_raster(path), path)
        assert np.array_equal(label, expected) and not unknown
    save(path, MASKS["RGB"])
    with pytest.raises(DatasetError, match="mask has colours, expected ids"):
        conversion(kind="ids")(task)


def test_unknown_colours_are_counted_and_nothing_is_written(tmp_path: Path) -> None:
    pixels = COLORS[IDS]
    pixels[0, :3], pixels[1, 0] = (1, 2, 3), (220, 20, 61)
    task = MaskFile(save(tmp_path / "m.png", Image.fromarray(pixels)), tmp_path / "o.png")
    done = conversion()(task)
    assert done.unknown == {(1, 2, 3): 3, (220, 20, 61): 1}
    assert not done.is_new and not task.output.exists()
    done = conversion(ignore_unknown=True)(task)
    expected = EXPECTED.copy()
    expected[0, :3] = expected[1, 0] = 255
    assert done.is_new and np.array_equal(read_raster(task.output).values, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_unknown_values_are_counted(tmp_path: Path, dtype: type) -> None:
    label = EXPECTED.astype(dtype)
    label[0, :4] = 77
    path = tmp_path / "m.tif"
    Image.fromarray(label).save(path)
    found, unknown = conversion().labels(read_raster(path), path)
    assert unknown == {77: 4} and (found[0, :4] == 255).all()


def test_negative_values_have_a_meaning_if_the_table_gives_them_one(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    Image.fromarray(np.array([[-1, 0, 7], [-2, 9, 70000]], np.int32)).save(path)
    changed = conversion(kind="ids", values={-1: 255, 0: 0, 7: 1})
    label, unknown = changed.labels(read_raster(path), path)
    assert label.tolist() == [[255, 0, 1], [255, 255, 255]]
    assert unknown == {-2: 1, 9: 1, 70000: 1}


def test_transparent_pixels_have_no_meaning(tmp_path: Path) -> None:
    pixels = alpha(255)
    pixels[0, :5, 3] = (0, 0, 1, 254, 0)
    path = save(tmp_path / "m.png", Image.fromarray(pixels))
    label, unknown = conversion().labels(read_raster(path), path)
    assert unknown == {"transparent": 5} and (label[0, :5] == 255).all()
    assert count_mask(path)[1]["transparent"] == 5


def test_sixteen_bits_that_are_no_colours(tmp_path: Path) -> None:
    pixels = COLORS[IDS].astype(np.uint16) * 257
    pixels[0, 0, 0] = 300
    path = save(tmp_path / "m.png", cv2_png(pixels))
    with pytest.raises(DatasetError, match=r"m\.png: found colors of 16 bits"):
        conversion().labels(read_raster(path), path)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_threshold_of_a_compressed_mask(tmp_path: Path, mode: str) -> None:
    square = np.zeros((32, 32), np.uint8)
    square[8:24, 8:24] = 255
    path = tmp_path / f"m.{'png' if mode == 'P' else 'jpg'}"
    Image.fromarray(square).convert(mode).save(path, quality=60)
    changed = conversion(threshold=128, values={0: 3, 1: 5})
    label, unknown = changed.labels(read_raster(path), path)
    assert np.array_equal(label, np.where(square, 5, 3)) and not unknown


def test_colours_are_counted(tmp_path: Path) -> None:
    expected = {tuple(c): int((n == IDS).sum()) for n, c in enumerate(COLORS.tolist())}
    for kind in ("RGB", "RGBA", "palette in another order"):
        assert count_mask(save(tmp_path / "m.png", MASKS[kind])) == ("colors", expected)
    expected = {v: int((v == EXPECTED).sum()) for v in (0, 1, 2, 255)}
    for kind in ("gray", "16-bit gray"):
        assert count_mask(save(tmp_path / "m.png", MASKS[kind])) == ("ids", expected)


@pytest.mark.parametrize("highest", [1, 255, 256, 65535])
def test_label_files_are_read_as_they_were_written(highest: int) -> None:
    label = np.array([[0, 1], [highest, 1]])
    with Image.open(io.BytesIO(index_png(label, {0: (1, 2, 3), 200: (4, 5, 6)}))) as image:
        assert image.mode == ("P" if highest < 256 else "I;16")
        assert np.array_equal(np.asarray(image), label)


def test_another_file_in_the_place_stays(tmp_path: Path) -> None:
    path, label = tmp_path / "o.png", np.zeros((3, 4), np.uint8)
    assert write_label(path, index_png(label, {}), False)
    # The same pixels, written by someone else.
    Image.fromarray(label).save(path)
    before = path.read_bytes()
    assert not write_label(path, index_png(label, {}), False) and path.read_bytes() == before
    for content in (index_png(label + 1, {}), index_png(label[:2], {})):
        with pytest.raises(DatasetError, match="found a file with other labels"):
            write_label(path, content, False)
        assert path.read_bytes() == before
    path.write_bytes(b"half")
    with pytest.raises(DatasetError, match="--overwrite"):
        write_label(path, index_png(label, {}), False)
    assert write_label(path, index_png(label, {}), True)
    assert os.listdir(tmp_path) == ["o.png"]


@pytest.mark.parametrize("quality", [5, 75])
@pytest.mark.parametrize("size", [(64, 48), (107, 80)])
def test_a_threshold_takes_masks_however_compressed(
    tmp_path: Path, quality: int, size: tuple[int, int]
) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[8:30, 5:50] = 255
    mask[::8, 20:24] = 255
    path = tmp_path / "mask.jpg"
    image = Image.fromarray(mask).resize(size, Image.Resampling.BICUBIC)
    image.convert("RGB").save(path, quality=quality)
    label, unknown = conversion(threshold=128).labels(read_raster(path), path)
    assert not unknown and 0.2 < label.mean() < 0.6


def test_a_threshold_refuses_photos(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.jpg"
    Image.fromarray(rng.normal(130, 25, (48, 64, 3)).clip(0, 255).astype(np.uint8)).save(path)
    with pytest.raises(DatasetError, match=r"photo.jpg: 9\d% of the pixels are far from two val"):
        conversion(threshold=128).labels(read_raster(path), path)
