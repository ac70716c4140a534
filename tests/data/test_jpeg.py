"""JPEG files: bit for bit as Pillow decodes them, and damaged ones left to it."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tagclip.data import jpeg
from tagclip.data.image_io import image_pixels, read_image
from tagclip.data.jpeg import decode_jpeg
from tagclip.errors import DatasetError

needs_simplejpeg = pytest.mark.skipif(jpeg.simplejpeg is None, reason="simplejpeg is missing")
sides = st.integers(1, 80)
# How a file is written: by Pillow's names of samplings 4:4:4, 4:2:2, 4:2:0.
ways = st.fixed_dictionaries(
    {
        "quality": st.integers(1, 100),
        "progressive": st.booleans(),
        "restart_marker_blocks": st.integers(0, 5),
        "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    }
)


def _photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges and noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    smooth[:, width // 2 :] = 255 - smooth[:, width // 2 :]
    noise = rng.integers(-20, 21, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, **way: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **way)
    return file.getvalue()


def _by_pillow(content: bytes, format: str = "RGB") -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels if format == "RGB" else pixels[:, :, ::-1]


def _decoded(content: bytes, format: str = "RGB") -> np.ndarray | None:
    with Image.open(io.BytesIO(content)) as image:
        return decode_jpeg(image, format)


@needs_simplejpeg
@settings(max_examples=150)
@given(
    sides,
    sides,
    st.integers(0, 99),
    st.sampled_from(["RGB", "L"]),
    st.sampled_from(["RGB", "BGR"]),
    ways,
)
def test_pixels_are_those_of_pillow(height, width, seed, mode, format, way) -> None:
    if mode == "L":
        way = {key: value for key, value in way.items() if key != "subsampling"}
    content = _jpeg(_photo(height, width, seed).convert(mode), **way)
    found = _decoded(content, format)
    assert found is not None and found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_array_equal(found, _by_pillow(content, format))


@needs_simplejpeg
@pytest.mark.parametrize("size", [(375, 500), (1024, 2048), (371, 499)])
@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_photos_are_those_of_pillow(size, sampling: str, progressive: bool) -> None:
    content = _jpeg(_photo(*size), subsampling=sampling, progressive=progressive, quality=90)
    np.testing.assert_array_equal(_decoded(content), _by_pillow(content))


@needs_simplejpeg
def test_red_green_and_blue_as_they_are() -> None:
    content = _jpeg(_photo(33, 41), keep_rgb=True)
    np.testing.assert_array_equal(_decoded(content), _by_pillow(content))


def _ycck() -> bytes:
    """Adobe's marker says how four components are to be understood: 2 is YCCK."""
    content = bytearray(_jpeg(_photo(33, 41).convert("CMYK")))
    place = content.index(b"Adobe")
    content[place + 11] = 2
    return bytes(content)


@pytest.mark.parametrize("kind", ["CMYK", "YCCK"])
def test_four_components_are_left_to_pillow(kind: str, tmp_path: Path) -> None:
    content = _ycck() if kind == "YCCK" else _jpeg(_photo(33, 41).convert("CMYK"))
    assert _decoded(content) is None
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), _by_pillow(content))


@settings(max_examples=300)
@given(st.data())
def test_damage_is_left_to_pillow(data: st.DataObject) -> None:
    """Changed, missing and added bytes: the same pixels as Pillow's, or none."""
    way = data.draw(ways)
    content = bytearray(_jpeg(_photo(data.draw(sides), data.draw(sides)), **way))
    place = data.draw(st.integers(2, len(content) - 1))
    change = data.draw(st.sampled_from(["change", "cut", "remove", "insert"]))
    some = data.draw(st.binary(min_size=1, max_size=8))
    if change == "change":
        content[place : place + len(some)] = some
    elif change == "cut":
        content[place:] = b"\xff\xd9" * data.draw(st.booleans())
    elif change == "remove":
        del content[place : place + len(some)]
    else:
        content[place:place] = some
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > 10**6:
                return
            found = decode_jpeg(image, "RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return
    if found is not None:
        np.testing.assert_array_equal(found, _by_pillow(bytes(content)))


def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    content = _jpeg(_photo(50, 60))
    for end in (len(content) // 2, len(content) - 2):
        path.write_bytes(content[:end])
        with pytest.raises(DatasetError, match="cannot decode this image") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_trailing_bytes_do_not_matter() -> None:
    content = _jpeg(_photo(20, 30)) + b"\0" * 100
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(image_pixels(image, ""), _by_pillow(content))


def test_the_frame_that_was_chosen_is_decoded() -> None:
    file, frames = io.BytesIO(), [_photo(20, 30, seed) for seed in range(2)]
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    with Image.open(file) as image:
        assert image.format == "MPO"
        first = image_pixels(image, "")
        image.seek(1)
        second = image_pixels(image, "")
        np.testing.assert_array_equal(second, np.asarray(image))
    np.testing.assert_array_equal(first, _by_pillow(file.getvalue()))
    assert (first != second).any()


def test_an_image_keeps_what_was_done_to_it() -> None:
    content = _jpeg(_photo(64, 64))
    with Image.open(io.BytesIO(content)) as image:
        image.paste((1, 2, 3), (0, 0, 64, 64))
        assert (image_pixels(image, "") == (1, 2, 3)).all()
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (32, 32))
        assert image_pixels(image, "").shape == (32, 32, 3)
    with Image.open(io.BytesIO(content)) as image:
        image.draft("L", (64, 64))
        pixels = image_pixels(image, "")
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_another_libjpeg_is_not_asked(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _jpeg(_photo(20, 30))
    monkeypatch.setattr(jpeg, "_is_exact", lambda: False)
    assert _decoded(content) is None
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(
            image_pixels(image, "", 0, format), _by_pillow(content, format)
        )


@needs_simplejpeg
def test_a_decoder_with_other_pixels_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg._is_exact()
    decode = jpeg.simplejpeg.decode_jpeg
    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", partial(decode, fastupsample=True))
    jpeg._is_exact.cache_clear()
    assert not jpeg._is_exact()
    monkeypatch.undo()
    jpeg._is_exact.cache_clear()


@settings(max_examples=100)
@example(3, 3, 1, 1, "RGB", 1)
@example(7, 7, 4, 4, "RGB", 1)
@given(sides, sides, sides, sides, st.sampled_from(["RGB", "L", "CMYK"]), st.integers(1, 8))
def test_smaller_images_are_those_of_pillow(
    tmp_path_factory, height, width, least_h, least_w, mode, orientation
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path_factory.mktemp("reduced") / "image.jpg"
    photo = _photo(height, width).convert(mode)
    path.write_bytes(_jpeg(photo, exif=exif, quality=95))
    found = read_image(path, least=(least_h, least_w))
    stored = (least_h, least_w) if orientation < 5 else (least_w, least_h)
    # The smallest that is large enough.
    sizes = [(-(-height // n), -(-width // n), n) for n in (1, 2, 4, 8) if n <= min(height, width)]
    fits = [n for h, w, n in sizes if h >= stored[0] and w >= stored[1]]
    factor = max(fits, default=1)
    with Image.open(path) as image:
        image.draft(image.mode, (width // factor, height // factor))
        assert image.size == (-(-width // factor), -(-height // factor))
        expected = ImageOps.exif_transpose(image.convert("RGB"))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_limit_of_pixels_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(_jpeg(_photo(40, 40)))
    with pytest.raises(DatasetError, match=r"40x40 pixels, INPUT\.MAX_PIXELS allows 1000"):
        read_image(path, max_pixels=1000, least=(5, 5))


@pytest.mark.parametrize(("mode", "progressive", "scans"), [
    ("RGB", False, 1), ("RGB", True, 10), ("L", True, 6), ("CMYK", True, 18),
])  # fmt: skip
def test_scans_are_counted(
    mode: str, progressive: bool, scans: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libjpeg's standard scripts write them; never those of what else is in the file."""
    content = _jpeg(_photo(40, 50).convert(mode), progressive=progressive, restart_marker_blocks=2)
    assert jpeg.count_scans(content) == scans
    monkeypatch.setattr(jpeg, "MOST_SCANS", 0)
    assert jpeg.count_scans(content) == scans
    thumbnail = _jpeg(_photo(8, 8), progressive=True)
    other = _jpeg(_photo(40, 50).convert(mode), progressive=progressive, comment=thumbnail * 3)
    assert jpeg.count_scans(other + thumbnail) == scans
    # Cut or empty, it is damaged in the end.
    for end in range(0, len(content), 7):
        assert jpeg.count_scans(content[:end]) <= scans


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(_photo(40, 50), progressive=True, comment=b"\xff\xda" * 30_000))
    expected = read_image(path)
    monkeypatch.setattr(jpeg, "MOST_SCANS", 10)
    assert np.array_equal(read_image(path), expected)
    monkeypatch.setattr(jpeg, "MOST_SCANS", 9)
    for source, name in ((path, str(path)), (path.read_bytes(), "image")):
        with pytest.raises(DatasetError) as refused:
            read_image(source, least=(10, 10))
        assert str(refused.value) == (
            f"{name}: found 10 scans in this JPEG, expected at most 9; save it anew"
        )
