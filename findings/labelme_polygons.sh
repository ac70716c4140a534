#!/usr/bin/env bash
# Expected: a polygon is the same pixels to all that read it; the square from (0, 0) to (4, 4) has 16.
# labelme paints the outline, too, and has 25 (so has OpenCV's fillPoly); pycocotools has 16.
# Polygons along the corners of pixels grow in labelme, those through border pixels shrink elsewhere.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment labelme==6.3.1 pycocotools==2.0.11 Pillow==12.3.0
"$PYTHON" - <<'PYTHON'
from labelme.utils import shape_to_mask
from pycocotools import mask

square = [[0, 0], [4, 0], [4, 4], [0, 4]]
there = int(shape_to_mask((9, 9), square, "polygon").sum())
coco = int(mask.area(mask.frPyObjects([[v for point in square for v in point]], 9, 9))[0])
print("pixels of the square: labelme", there, "pycocotools", coco)
assert (there, coco) == (25, 16)
PYTHON
