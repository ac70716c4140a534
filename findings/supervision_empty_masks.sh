#!/usr/bin/env bash
# Expected: a compressed RLE is read, or refused as up to supervision 0.27, whatever iscrowd says.
# supervision 0.28 and 0.29 read it with iscrowd 1 only; with 0, as results and the annotations of
# COCO-Stuff have it, the mask is empty, without an error. 0.30 reads both.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment supervision==0.29.1 pycocotools==2.0.11 numpy==2.4.6 Pillow==12.3.0
"$PYTHON" - <<'PYTHON'
import json

import numpy as np
import supervision
from PIL import Image
from pycocotools import mask

code = mask.encode(np.asfortranarray(np.eye(4, dtype=np.uint8)))
code["counts"] = code["counts"].decode("ascii")
Image.new("RGB", (4, 4)).save("a.png")
for iscrowd, expected in ((0, 0), (1, 4)):
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": code, "area": 4}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 4}],
        "annotations": [{**row, "bbox": [0, 0, 4, 4], "iscrowd": iscrowd}],
        "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
    }
    with open("coco.json", "w") as file:
        json.dump(content, file)
    dataset = supervision.DetectionDataset.from_coco(".", "coco.json", force_masks=True)
    found = dataset[0][2].mask[0]
    print("iscrowd", iscrowd, "pixels of the mask", int(found.sum()), "of 4")
    assert found.sum() == expected
PYTHON
