#!/usr/bin/env bash
# Expected: "nearest" is nearest, so labels resized by one library fit images resized by another. OpenCV,
# torch and torchvision's masks take the pixel at the corner of a cell, Pillow (detectron2, for uint8)
# the one in its middle, where all of them put the pixels of a bilinearly resized image.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 Pillow==12.3.0 opencv-python-headless==5.0.0.93
"$PYTHON" - <<'PYTHON'
import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as V

row = np.tile(np.arange(9, dtype=np.uint8), (3, 1))
tensor = torch.from_numpy(row)[None, None].float()
found = {
    "cv2 NEAREST": cv2.resize(row, (3, 3), interpolation=cv2.INTER_NEAREST)[0],
    "torch nearest": F.interpolate(tensor, (3, 3), mode="nearest")[0, 0, 0],
    "torchvision v2 Mask": V.resize(tv_tensors.Mask(torch.from_numpy(row)), [3, 3])[0],
    "Pillow NEAREST": np.asarray(Image.fromarray(row).resize((3, 3), Image.Resampling.NEAREST))[0],
    "cv2 NEAREST_EXACT": cv2.resize(row, (3, 3), interpolation=cv2.INTER_NEAREST_EXACT)[0],
    "torch nearest-exact": F.interpolate(tensor, (3, 3), mode="nearest-exact")[0, 0, 0],
    "cv2 LINEAR, an image": cv2.resize(row, (3, 3), interpolation=cv2.INTER_LINEAR)[0],
}
for name, values in found.items():
    found[name] = [int(value) for value in values]
    print(f"0 1 2 3 4 5 6 7 8 to three pixels, {name}: {found[name]}")
corner, middle = [0, 3, 6], [1, 4, 7]
assert list(found.values()) == [corner] * 3 + [middle] * 4
PYTHON
