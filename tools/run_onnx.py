#!/usr/bin/env python
"""Label an image with an exported model, without torch, as its model.json says.

Of model.json, class_ids are the values of the labels, and ignore_label that of no class.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

try:
    import cv2
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps
except ImportError as error:
    sys.exit(f"{error}; run: pip install numpy onnxruntime opencv-python-headless pillow")


@contextmanager
def expecting(where, what):
    """End with one line and exit code 1 on any error."""
    try:
        yield
    except Exception as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(f"{where}: found {found[:300]}, expected {what}")


def read_image(path):
    """(H, W, 3) uint8 RGB as in training: upright, without alpha, 16-bit gray divided by 257."""
    with Image.open(path) as file:
        tags = file.tag_v2 if file.format == "TIFF" else {}
        is_deep = file.mode[0] == "I" or max(tags.get(258, (8,))) > 8 or ";16" in str(file.tile)
        bands = tags.get(277, 3) if tags.get(262) == 2 and not {1, 2} & {*tags.get(338, ())} else 3
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{values.dtype} values {values.min()}..{values.max()}")
        image = Image.fromarray(((values.astype(np.int32) + 128) // 257).astype(np.uint8))
    pixels = np.asarray(image.convert("RGB"))
    if is_deep and (most := pixels.max()) <= 64:
        print(f"{path}: 16-bit image, dark as read: brightest value {most} of 255", file=sys.stderr)
    if bands > 3:
        print(f"{path}: the first 3 of {bands} bands are read as red, green, blue", file=sys.stderr)
    return pixels


def class_scores(image, recipe, session):
    """(K, H, W) float32: the mean of the scores of all windows over an (H, W, 3) uint8 RGB."""
    size, names, rule = image.shape[:2], recipe["class_names"], recipe["resize"]
    scale = min(rule["short_side"] / min(size), (rule["long_side"] or np.inf) / max(size)) or 1
    sides = [max(1, int(side * scale + 0.5)) for side in size]
    if rule["library"] == "pil":
        image = np.asarray(Image.fromarray(image).resize(sides[::-1], Image.Resampling.BILINEAR))
    else:
        image = cv2.resize(image, sides[::-1])
    image = image[:, :, :: 1 if recipe["channel_order"] == "RGB" else -1]
    window = [min(pair) for pair in zip(sides, recipe["windows"]["size"] or sides, strict=True)]
    axes = zip(sides, window, recipe["windows"]["stride"] or window, strict=True)
    origins = [[min(x, s - w) for x in range(0, s - w + step, step)] for s, w, step in axes]
    scores, count = np.zeros((len(names), *sides), np.float32), np.zeros(sides, np.float32)
    for top, left in itertools.product(*origins):
        area = slice(top, top + window[0]), slice(left, left + window[1])
        pixels = np.ascontiguousarray(image[area].transpose(2, 0, 1)[None])
        scores[:, *area] += session.run(["scores"], {"images": pixels})[0][0]
        count[area] += 1
    return np.stack([cv2.resize(plane, size[::-1]) for plane in scores / count])


def main(args):
    if args.labels.resolve() == args.image.resolve():
        sys.exit(f"{args.labels}: found the image itself, expected another file for the labels")
    recipe_path, model_path = args.export / "model.json", args.export / "model.onnx"
    with expecting(recipe_path, "what tools/export_model.py writes; check it or export again"):
        recipe = json.loads(recipe_path.read_text(encoding="utf-8"))
        names = recipe["class_names"]
        values = [*recipe.get("class_ids", range(len(names))), recipe.get("ignore_label", -1)]
    with expecting(model_path, "the file that model.json describes; export again"):
        session = onnxruntime.InferenceSession(model_path)
        sha256 = hashlib.sha256(model_path.read_bytes()).hexdigest()
        if sha256 != recipe["files"]["model.onnx"]["sha256"]:
            raise ValueError(f"sha256 {sha256}")
    with expecting(args.image, "an image that Pillow reads, 8-bit or 16-bit gray"):
        image = read_image(args.image)
    with expecting(f"{args.image} {image.shape[:2]}", "pixels for the input of model.json"):
        scores = class_scores(image, recipe, session)
        is_other = scores.max(0) < (recipe["background_threshold"] or -np.inf)
    labels = np.where(is_other, -1, scores.argmax(0))
    with expecting(args.labels, "a PNG file in a folder that can be written"):
        if args.labels.suffix.lower() != ".png":
            raise ValueError(f"the suffix {args.labels.suffix!r}")
        temporary = args.labels.with_name(f".{args.labels.name}.{os.getpid()}.tmp")
        deep = np.min_scalar_type(max(len(names), *values))
        picture = Image.fromarray(np.array(values).astype(deep)[labels])
        try:
            picture.save(temporary, "PNG")
            os.replace(temporary, args.labels)
        finally:
            temporary.unlink(missing_ok=True)
    print({name: f"{(labels == index).mean():.1%}" for index, name in enumerate(names)})


def invoke_main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path, help="folder with model.json and model.onnx")
    parser.add_argument("image", type=Path, help="read as in training: upright, without alpha")
    parser.add_argument("labels", type=Path, help="NAME.png to write")
    main(parser.parse_args())


if __name__ == "__main__":
    invoke_main()
