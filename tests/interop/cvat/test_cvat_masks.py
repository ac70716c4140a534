"""CVAT's SDK encodes and decodes masks; in CVAT's xml we read the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cvat_sdk.masks import decode_mask, encode_mask
from helpers.annotated_scene import CAR, HEIGHT, LINE, SPOT, TREE, WIDTH
from helpers.paths import STORED

from tagclip.data.formats import reader


def attributes(mask: np.ndarray) -> str:
    """A mask in the attributes that CVAT's server writes (cvat/apps/dataset_manager/formats)."""
    *runs, x0, y0, x1, y1 = map(int, encode_mask(mask))
    return (
        f'rle="{str(runs)[1:-1]}" left="{x0}" top="{y0}" width="{x1 - x0 + 1}" '
        f'height="{y1 - y0 + 1}"'
    )


def test_the_stored_masks_are_what_it_encodes() -> None:
    text = (STORED / "cvat" / "annotations.xml").read_text()
    for mask in (TREE, CAR, LINE, SPOT):
        assert attributes(mask) in text


def test_masks_are_those_that_it_decodes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.random((HEIGHT, WIDTH)) < share for share in (0.02, 0.3, 0.5, 0.98)]
    masks.append(np.ones((HEIGHT, WIDTH), bool))
    lines = [f'<mask label="a" {attributes(mask)} z_order="0"/>' for mask in masks]
    (tmp_path / "annotations.xml").write_text(
        "<annotations><meta><task><labels><label><name>a</name></label></labels></task></meta>"
        f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        f"{''.join(lines)}</image></annotations>"
    )
    (image,) = reader("cvat").read(tmp_path)
    assert len(image.segments) == len(masks)
    for mask, segment in zip(masks, image.segments, strict=True):
        decoded = decode_mask(encode_mask(mask), image_width=WIDTH, image_height=HEIGHT)
        assert (segment.mask() == decoded).all() and (decoded == mask).all()
