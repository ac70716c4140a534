#!/usr/bin/env python
"""Label an image without torch, as model.json says: run_onnx.py EXPORT_DIR IMAGE LABELS.png"""

import itertools
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def main(folder: str, image_path: str, labels_path: str) -> None:
    recipe = json.loads(Path(folder, "model.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(Path(folder, "model.onnx"))
    image = cv2.imread(image_path)
    size, names, rule = image.shape[:2], recipe["class_names"], recipe["resize"]
    scale = min(rule["short_side"] / min(size), (rule["long_side"] or np.inf) / max(size)) or 1
    sides = [max(1, int(side * scale + 0.5)) for side in size]
    image = cv2.resize(image, sides[::-1])[:, :, :: -1 if recipe["channel_order"] == "RGB" else 1]
    window = [min(pair) for pair in zip(sides, recipe["windows"]["size"] or sides, strict=True)]
    axes = zip(sides, window, recipe["windows"]["stride"] or window, strict=True)
    origins = [[min(x, s - w) for x in range(0, s - w + step, step)] for s, w, step in axes]
    scores, count = np.zeros((len(names), *sides), np.float32), np.zeros(sides, np.float32)
    for top, left in itertools.product(*origins):
        area = slice(top, top + window[0]), slice(left, left + window[1])
        pixels = np.ascontiguousarray(image[area].transpose(2, 0, 1)[None])
        scores[:, *area] += session.run(["scores"], {"images": pixels})[0][0]
        count[area] += 1
    scores = np.stack([cv2.resize(plane, size[::-1]) for plane in scores / count])
    is_other = scores.max(0) < (recipe["background_threshold"] or -np.inf)
    labels = np.where(is_other, -1, scores.argmax(0))
    cv2.imwrite(labels_path, labels.astype(np.uint8 if len(names) < 256 else np.uint16))
    print({name: f"{(labels == index).mean():.1%}" for index, name in enumerate(names)})


def invoke_main() -> None:
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{' '.join(sys.argv)}: {type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    invoke_main()
