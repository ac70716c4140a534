#!/usr/bin/env bash
# Expected: training and evaluation read the same label file alike. For a PNG with a palette, as PASCAL
# VOC ships, DatasetMapper takes the brightness of the colours (class 1 becomes 38, ignore 220), and
# SemSegEvaluator the indices.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}"
"$PYTHON" - <<'PYTHON'
import numpy as np
from detectron2.data import DatasetMapper
from PIL import Image

indices = np.array([[0, 1, 2, 15, 255]], np.uint8)
label = Image.fromarray(indices)
# VOC's colours: bit j of the index, read from below, is bit 7 - j // 3 of channel j % 3.
colours = [
    [sum(((k >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    for k in range(256)
]
label.putpalette(sum(colours, []))
label.save("label.png")
Image.new("RGB", (5, 1)).save("image.png")
mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
sample = mapper({"file_name": "image.png", "sem_seg_file_name": "label.png"})
trained = sample["sem_seg"].tolist()
evaluated = np.array(Image.open("label.png"), dtype=int).tolist()  # as SemSegEvaluator.process
print("in the file", indices.tolist(), "DatasetMapper", trained, "SemSegEvaluator", evaluated)
assert trained == [[0, 38, 75, 147, 220]] and evaluated == indices.tolist()
PYTHON
