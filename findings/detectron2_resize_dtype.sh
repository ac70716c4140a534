#!/usr/bin/env bash
# Expected: ResizeTransform (ResizeShortestEdge) gives a float32 image the pixels of a uint8 one, and
# takes labels of any integer type. A uint8 image is antialiased by Pillow, a float32 one is not:
# lines thinner than the step vanish. uint8 labels come from the middle of a cell, float32 ones from
# its corner, and int16, int32 and int64 ones, which more than 256 labels need, are refused.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}"
"$PYTHON" - <<'PYTHON'
import numpy as np
from detectron2.data import transforms as T

resize = T.ResizeTransform(9, 9, 3, 3)
stripes = np.zeros((9, 9, 3), np.uint8)
stripes[:, ::3] = 255
byte, real = (resize.apply_image(stripes.astype(dtype))[0, :, 0] for dtype in ("u1", "f4"))
print("stripes as uint8", byte, "as float32", real)
assert byte.min() >= 60 and (real == 0).all()
labels = np.arange(16).reshape(4, 4)
resize = T.ResizeShortestEdge(3, 100).get_transform(np.zeros((4, 4, 3), np.uint8))
found = {}
for dtype in ("uint8", "float32", "int16", "int32", "int64"):
    try:
        found[dtype] = resize.apply_segmentation(labels.astype(dtype))[0].astype(int).tolist()
    except NotImplementedError as error:
        found[dtype] = f"NotImplementedError: {error}"
    print("labels 0 1 2 3 as", dtype, found[dtype])
assert (found["uint8"], found["float32"]) == ([0, 2, 3], [0, 1, 2])
assert all("not implemented" in found[dtype] for dtype in ("int16", "int32", "int64"))
PYTHON
