"""A small dataset, and one fault of each kind put into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from helpers.toy_dataset import vocabulary_tree, write_json, write_sample
from PIL import Image

from tagclip.data import register_folder_dataset

NAMES = ["cat", "dog", "grass", "sky"]
HEIGHT, WIDTH = 12, 16


def random_image(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_label(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Noise over the four classes and the ignore label."""
    ids = np.array([0, 1, 2, 3, 255], dtype=np.uint8)
    return np.random.default_rng(1000 + seed).choice(ids, (height, width))


def make_dataset(folder: Path, count: int, name: str = "toy", seed: int = 0) -> Path:
    """Write and register a dataset without fault: images, labels and toy.json in a folder."""
    for index in range(count):
        write_sample(folder, f"{index:03d}", random_image(seed + index), random_label(seed + index))
    vocabulary = write_json(folder / "toy.json", vocabulary_tree(NAMES, ["dog"]))
    register_folder_dataset(name, folder / "images", folder / "labels", vocabulary)
    return folder


def spoil(folder: Path) -> dict[str, tuple[str, str]]:
    """Put one fault into each of the samples 0, 1, ...; return kind -> (file, text)."""
    image = [folder / "images" / f"{index:03d}.png" for index in range(20)]
    label = [folder / "labels" / f"{index:03d}.png" for index in range(20)]
    label[0].unlink()
    image[1].unlink()
    image[2].write_bytes(image[2].read_bytes()[:200])
    label[3].write_bytes(b"")
    Image.new("RGB", Image.open(label[4]).size, (1, 2, 3)).save(label[4])
    Image.fromarray(random_label(5)[:-1]).save(label[5])
    Image.fromarray(random_label(6).T).save(label[6])
    set_orientation(image[7], 6)
    Image.fromarray(random_label(7).T).save(label[7])
    set_orientation(image[8], 3)
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, dtype=np.uint8)).save(label[9])
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)).save(label[10])
    shutil.copy(image[12], image[11])
    Image.open(image[13]).convert("RGBA").save(image[13])
    Image.fromarray(np.full((HEIGHT, WIDTH), 40000, dtype=np.uint16)).save(image[14])
    Image.fromarray(np.full((HEIGHT, WIDTH), 4095, dtype=np.uint16)).save(image[15])
    return {
        "lonely_image": (image[0], ""),
        "lonely_label": (label[1], ""),
        "image_unreadable": (image[2], "truncated"),
        "label_unreadable": (label[3], "0 bytes"),
        "label_channels": (label[4], "label file has colours"),
        "size": (label[5], "label 16x11, image 16x12"),
        "size_swapped": (label[6], "label 12x16, image 16x12"),
        "exif_fits": (image[7], "EXIF orientation 6"),
        "exif_unclear": (image[8], "EXIF orientation 3"),
        "unknown": (label[9], "9 (192 pixels)"),
        "all_ignored": (label[10], ""),
        "duplicate": (image[12], str(image[11])),
        "image_alpha": (image[13], "RGBA"),
        "image_16bit": (image[14], "I;16"),
        "image_dark": (image[15], "brightest value 16 of 255"),
    }


def set_orientation(path: Path, orientation: int) -> None:
    """Set the EXIF orientation of an image file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)
