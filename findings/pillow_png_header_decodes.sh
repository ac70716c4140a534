#!/usr/bin/env bash
# Expected: the size and the orientation of an image are in its header, so that asking for them costs
# no decoding, as with JPEG. Image.getexif of a PNG without EXIF in front of its pixels decodes it.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment Pillow==12.3.0 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
from PIL import Image

pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
decoded = {}
for name in ("a.jpg", "a.png"):
    Image.fromarray(pixels).save(name)
    with Image.open(name) as image:
        calls = []
        load = image.load
        image.load = lambda: calls.append(1) or load()
        print(name, image.size, "orientation", image.getexif().get(0x0112, 1), "decoded", bool(calls))
        decoded[name] = bool(calls)
assert decoded == {"a.jpg": False, "a.png": True}
PYTHON
