"""Codes of the real encoder, and of one written down here bit by bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.paths import STORED
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.data.formats.rle_pack import decode_rle_pack
from tagclip.errors import DatasetError


def encode(blocks: list[tuple[bool, list[int]]], sizes: tuple[int, int, int, int]) -> bytes:
    """Blocks as they are given: (one value repeated or single values, the values)."""
    count = sum(len(values) for _, values in blocks)
    bits = f"{count:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    for is_run, values in blocks:
        choice = next(i for i, size in enumerate(sizes) if len(values) <= 1 << size)
        bits += f"{is_run:b}{choice:02b}{len(values) - 1:0{sizes[choice]}b}"
        bits += "".join(f"{value:08b}" for value in (values[:1] if is_run else values))
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


@pytest.mark.parametrize("index", [0, 1])
def test_the_encoder_of_the_editor(index: int) -> None:
    stored = json.loads((STORED / "label_studio" / "rle_pack.json").read_text())[index]
    size = stored["height"], stored["width"]
    alpha = np.array(stored["alpha"]).reshape(size)
    # One with partly covered edges, one of a colour with half alpha.
    assert 128 in alpha if index else len(np.unique(alpha)) > 3
    assert (decode_rle_pack(bytes(stored["rle"]), size) == (alpha > 0)).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_blocks(data: st.DataObject) -> None:
    value = st.integers(0, 255)
    run = st.builds(lambda v, n: (True, [v] * n), value, st.integers(1, 900))
    single = st.builds(lambda v: (False, v), st.lists(value, min_size=1, max_size=30))
    blocks = data.draw(st.lists(run | single, min_size=1, max_size=12))
    missing = -sum(len(values) for _, values in blocks) % 4
    blocks += [(True, [7] * missing)] if missing else []
    code = encode(blocks, data.draw(st.sampled_from([(3, 4, 8, 16), (1, 2, 5, 10)])))
    values = np.array([value for _, values in blocks for value in values])
    found = decode_rle_pack(code, (1, len(values) // 4))
    assert found.shape == (1, len(values) // 4)
    assert (found[0] == (values[3::4] > 0)).all()


def test_runs_of_many_blocks() -> None:
    blocks = [(True, [0] * 65536)] * 3 + [(True, [255] * 65536)]
    found = decode_rle_pack(encode(blocks, (3, 4, 8, 16)), (256, 256))
    assert (found == (np.arange(256) >= 192)[:, None]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda code: code[:5], "found a brush that ends after 5 bytes"),
        (lambda code: code[:-3], "found a brush that ends after"),
        (lambda code: b"\0\0\0\x08" + code[4:], "found a brush of 8 values of 8 bits, expected 48"),
        (lambda code: code[:4] + b"\x79" + code[5:], "found a brush of 48 values of 16 bits"),
        (
            lambda code: encode([(True, [1] * 60)], (3, 4, 8, 16)).replace(b"\x3c", b"\x30", 1),
            "found a brush of more than its 48 values",
        ),
    ],
)
def test_damaged_codes(change, message: str) -> None:
    code = encode([(True, [255] * 48)], (3, 4, 8, 16))
    assert decode_rle_pack(code, (3, 4)).all()
    with pytest.raises(DatasetError, match=message):
        decode_rle_pack(change(code), (3, 4))
