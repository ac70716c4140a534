#!/usr/bin/env bash
# Expected: label pixels beside the image become the ignore value, or pad_value. They become class 0,
# whatever pad_value; the corners of a rotation as well. (The main branch has seg_pad_value.)
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment detectron2==0.6 "${detectron2_needs[@]}" opencv-python-headless==5.0.0.93
"$PYTHON" - <<'PYTHON'
import numpy as np
from detectron2.data import transforms as T

image, label = np.full((4, 4, 3), 9, np.uint8), np.full((4, 4), 5, np.uint8)
for value in (128, 255):
    crop = T.FixedSizeCrop((6, 6), pad_value=value).get_transform(image)
    pixel, padded = crop.apply_image(image)[5, 5, 0], crop.apply_segmentation(label)
    print(f"FixedSizeCrop(pad_value={value}): image {pixel}, label {padded[5, 5]}")
    assert (pixel, padded[5, 5], padded[0, 0]) == (value, 0, 5)
turned = T.RandomRotation([45, 45]).get_transform(image).apply_segmentation(label)
print("RandomRotation: labels", np.unique(turned))
assert set(np.unique(turned)) == {0, 5}
PYTHON
