#!/usr/bin/env bash
# Expected: mask.decode refuses run lengths that are fewer than the pixels, as it does those that are
# more, or fills with 0. It returns the memory as it is: here the mask decoded before. frPyObjects and
# COCO.annToMask pass a cut or edited json on like that; mask.area counts the runs that are there.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment pycocotools==2.0.11 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
from pycocotools import mask

size = [100, 100]
short = mask.frPyObjects({"size": size, "counts": [10, 20]}, *size)
full = mask.encode(np.ones(size, np.uint8, order="F"))
seen = []
for _ in range(20):
    before = mask.decode(full)
    del before
    seen.append(int(mask.decode(short).sum()))
print("100x100 pixels, runs of 10 and 20, area", mask.area(short), "decoded sums", sorted(set(seen)))
assert mask.area(short) == 20 and max(seen) > 20
try:
    mask.decode({"size": [2, 2], "counts": full["counts"]})
except ValueError as error:
    print("too long:", error)
else:
    raise AssertionError("too long a text was decoded")
PYTHON
