"""Label Studio's tasks: fields of its documented json, and the pixels that the regions mean."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.labelled_images import NAMES, labelled_images, odd_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tagclip.data.formats.label_studio_out import write_label_studio
from tagclip.data.formats.rle_pack import encode_rle_pack

KINDS = {"polygons": "polygonlabels", "masks": "brushlabels"}


def decode(code: bytes) -> np.ndarray:
    """Bytes of a brush region, bit by bit as rle-pack describes them."""
    bits, place = "".join(f"{byte:08b}" for byte in code), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < count:
        is_run, length = take(1), sizes[take(2)]
        number = take(length) + 1
        found += [take(word)] * number if is_run else [take(word) for _ in range(number)]
    assert len(found) == count and set(bits[place:]) <= {"0"} and len(bits) - place < 8
    return np.array(found, np.uint8)


@pytest.mark.parametrize("shapes", ["polygons", "masks"])
def test_the_files(tmp_path: Path, shapes: str) -> None:
    images = labelled_images(tmp_path / "images")
    tasks, config = write_label_studio(tmp_path, images, odd_vocabulary(), shapes)
    view = ElementTree.parse(config).getroot()
    assert view.find("Image").attrib == {"name": "image", "value": "$image", "zoom": "true"}
    control = view[1]
    assert control.tag.lower() == KINDS[shapes]
    assert control.attrib == {"name": "label", "toName": "image"}
    assert [label.get("value") for label in control] == NAMES
    content = json.loads(tasks.read_text())
    assert len(content) == len(images)
    for task, image in zip(content, images, strict=True):
        assert task["data"].keys() == {"image"} and task["data"]["image"].isascii()
        assert unquote(task["data"]["image"]) == f"/data/local-files/?d={image.file}"
        (prediction,) = task["predictions"]
        regions = prediction["result"]
        assert len({region["id"] for region in regions}) == len(regions)
        painted = np.full(image.labels.shape, -1)
        for region in regions:
            assert region["from_name"] == "label" and region["to_name"] == "image"
            assert region["type"] == KINDS[shapes] and region["image_rotation"] == 0
            size = region["original_height"], region["original_width"]
            assert size == image.labels.shape
            mask = read_mask(region["value"], size)
            assert mask.any() and (painted[mask] == -1).all()
            (name,) = region["value"][KINDS[shapes]]
            painted[mask] = NAMES.index(name)
        assert (painted == image.labels).all()


def read_mask(value: dict, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a region."""
    if "rle" in value:
        assert value["format"] == "rle"
        return decode(bytes(value["rle"])).reshape(*size, 4)[:, :, 3] == 255
    assert value["closed"] is True
    points = np.array(value["points"])
    assert points.min() >= 0 and points.max() <= 100
    code = coco_mask.frPyObjects([(points / 100 * size[::-1]).ravel().tolist()], *size)
    return coco_mask.decode(code)[..., 0] > 0


def test_the_address_of_the_images(tmp_path: Path) -> None:
    images = labelled_images(tmp_path / "images")[1:2]
    write_label_studio(tmp_path, images, odd_vocabulary(), "masks", "https://images.example/")
    content = json.loads((tmp_path / "tasks.json").read_text())
    assert content[0]["data"]["image"] == "https://images.example/street/b%20c.png"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(1, 20), st.sampled_from([64, 16384, 16385, 33000])),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_runs_of_every_length(lengths: list[int], first: bool) -> None:
    flags = np.repeat((np.arange(len(lengths)) + first) % 2 == 1, lengths)
    found = decode(encode_rle_pack(flags.reshape(1, -1)))
    assert (found == np.where(flags, 255, 0).repeat(4)).all()


def test_no_image_gives_an_empty_list(tmp_path: Path) -> None:
    tasks, _ = write_label_studio(tmp_path, [], odd_vocabulary(), "polygons")
    assert json.loads(tasks.read_text()) == []
