#!/usr/bin/env bash
# Expected: what numpy calls contiguous, torch takes. Of an image one pixel wide that is mirrored,
# np.ascontiguousarray returns the view as it is, with its negative stride, and torch refuses it.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment torch==2.14.1 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
import torch

for width in (2, 1):
    mirrored = np.zeros((5, width, 3), np.uint8)[:, ::-1]
    array = np.ascontiguousarray(mirrored)
    try:
        torch.from_numpy(array)
        answer = "taken"
    except ValueError as error:
        answer = f"ValueError: {str(error)[:57]}"
    print("width", width, "strides", array.strides, array.flags.c_contiguous, answer)
    assert array.flags.c_contiguous and (answer == "taken") == (width == 2)
PYTHON
