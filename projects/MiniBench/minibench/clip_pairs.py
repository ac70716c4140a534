"""Image-caption pairs for training the mini CLIP, and crops for measuring it."""

from __future__ import annotations

import numpy as np

from tagclip.projects.minibench.scenes import CLASSES, Scene, crop_scene, pair_scene
from tagclip.projects.minibench.textures import HUES, NOUNS, Stream

__all__ = ["PREFIXES", "caption", "crops", "pairs", "words"]

PREFIXES = ("a photo of a ", "a picture of a ", "", "there is a ", "an image of a ")
_THINGS = len(NOUNS) * len(HUES)
_SEED_PAIRS, _SEED_CROPS = 11, 12


def words() -> list[str]:
    """Every word that a caption can hold."""
    text = " ".join((*PREFIXES, *CLASSES, "red thing on and"))
    return list(dict.fromkeys(text.split()))


def caption(stream: Stream, scene: Scene) -> str:
    """Describe what is visible, without prefix.

    Half of the things are named in full, 35 % by noun only, 15 % by colour only: with full
    captions alone both towers stall on one attribute.
    """
    pixels = np.bincount(scene.label.ravel(), minlength=256)[: len(CLASSES)] / scene.label.size
    things = [k for k in range(_THINGS) if pixels[k] >= 0.045]
    stuff = [k for k in range(_THINGS, len(CLASSES)) if pixels[k] >= 0.10]
    stuff_only = bool(stuff) and (not things or stream.chance(15))
    if stuff_only:
        return " and ".join(CLASSES[k] for k in stuff)
    parts = []
    for k in things:
        color, noun = CLASSES[k].split()
        draw = stream.integer(0, 99)
        parts.append(CLASSES[k] if draw < 50 else noun if draw < 85 else f"{color} thing")
    text = " and ".join(parts)
    if stuff and stream.chance(40):
        text += f" on {CLASSES[stuff[0]]}"
    return text


def pairs(count: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return (count, 32, 32, 3) uint8 images and their captions without prefix."""
    images, captions, index = [], [], 0
    while len(images) < count:
        stream = Stream(_SEED_PAIRS, seed, index)
        scene, index = pair_scene(stream), index + 1
        text = caption(stream, scene)
        if text:
            images.append(scene.image)
            captions.append(text)
    return np.stack(images), captions


def crops(per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (24 * per_class, 32, 32, 3) uint8 images of one class each, and (..., ) classes."""
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    images = [
        crop_scene(Stream(_SEED_CROPS, seed, i), int(label)).image for i, label in enumerate(labels)
    ]
    return np.stack(images), labels
