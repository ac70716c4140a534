#!/usr/bin/env bash
# Expected: mask.encode takes all that is not 0 for foreground (or refuses other values than 0 and 1).
# Every change of value begins a run: a mask with two values that are not 0 comes back inverted behind
# the second one, without an error. A crop of a label map, or an edge of 254 beside 255, suffices.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment pycocotools==2.0.11 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
from pycocotools import mask

for values, expected in (([0, 1, 1, 0, 0], [0, 1, 1, 0, 0]), ([0, 1, 2, 0, 0], [0, 1, 0, 1, 1])):
    code = mask.encode(np.asfortranarray(np.array([values], np.uint8)))
    found = mask.decode(code)[0].tolist()
    print("encoded", values, "decoded", found, "area", mask.area(code))
    assert found == expected and mask.area(code) == sum(expected)
PYTHON
