#!/usr/bin/env bash
# Expected: "Brush labels to COCO" of Label Studio keeps the pixels that were painted, and the classes
# of the labelling config. Its polygons run through the middles of the outermost pixels, so that
# pycocotools fills less: 24 pixels come back as 15. Holes are filled, lines of one pixel vanish.
# Categories are numbered as labels are met, and those that no image has are missing. The export
# "JSON" holds every pixel.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment label-studio-sdk==2.1.2 opencv-python-headless==4.12.0.88 numpy==2.2.6 pycocotools==2.0.11
"$PYTHON" - <<'PYTHON'
import json

import numpy as np
from label_studio_sdk.converter import Converter, brush
from pycocotools import mask as coco

shape = (9, 12)
block, ring, line = (np.zeros(shape, np.uint8) for _ in range(3))
block[1:5, 2:8] = 255
ring[:7, 4:11], ring[2:5, 6:9] = 255, 0
line[7] = 255
painted = {"tree": block, "line": line, "ring": ring}
config = '<View><Image name="i" value="$image"/><BrushLabels name="t" toName="i">' + "".join(
    f'<Label value="{name}"/>' for name in ("unused", "line", "ring", "tree")
)
size = {"original_height": shape[0], "original_width": shape[1]}
result = [
    {"type": "brushlabels", "from_name": "t", "to_name": "i", **size}
    | {"value": {"format": "rle", "rle": brush.mask2rle(mask), "brushlabels": [name]}}
    for name, mask in painted.items()
]
with open("tasks.json", "w") as file:
    annotation = {"id": 1, "completed_by": 1, "result": result}
    json.dump([{"id": 1, "data": {"image": "a.png"}, "annotations": [annotation]}], file)
converter = Converter(config + "</BrushLabels></View>", ".", download_resources=False)
converter.convert("tasks.json", "out", "BRUSH_TO_COCO", is_dir=False)
with open("out/result_coco.json") as file:
    content = json.load(file)
names = {row["id"]: row["name"] for row in content["categories"]}
areas = dict.fromkeys(painted, 0)
for row in content["annotations"]:
    found = coco.decode(coco.frPyObjects(row["segmentation"], *shape))
    areas[names[row["category_id"]]] += int(found.sum())
print("categories", names)
for name, mask in painted.items():
    print(name, "pixels painted", int((mask > 0).sum()), "read back", areas[name])
assert names == {1: "tree", 2: "line", 3: "ring"}
assert areas == {"tree": 15, "line": 0, "ring": 36} and (ring > 0).sum() == 40
PYTHON
