#!/usr/bin/env bash
# Expected: n_frames of a TIFF is how many pages it has, whatever the later ones hold, for nothing
# of them is decoded. Here, of a file whose first page is plain RGB and whose second one is half
# precision floats, or a mask with the photometric value that the standard gives masks, the first
# page is read and n_frames raises. tifffile counts two pages of both.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment Pillow==12.3.0 tifffile==2026.3.3 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

MASK = 4
pixels = np.full((32, 32, 3), 7, np.uint8)
second = {
    "rgb": {"data": pixels, "photometric": "rgb"},
    "float16": {"data": np.zeros((32, 32), np.float16)},
    "mask": {"data": np.zeros((32, 32), bool), "photometric": MASK, "subfiletype": 4},
}
found = {}
for name, page in second.items():
    with tifffile.TiffWriter("a.tif") as file:
        file.write(pixels, photometric="rgb", metadata=None)
        file.write(metadata=None, **page)
    with tifffile.TiffFile("a.tif") as file:
        pages = len(file.pages)
    with Image.open("a.tif") as image:
        is_read = bool((np.asarray(image) == pixels).all())
        try:
            count = image.n_frames
        except Exception as error:
            count = f"{type(error).__name__}: {error}"
    print(f"second page {name}: tifffile counts {pages}; first read {is_read}, n_frames {count}")
    found[name] = pages, is_read, count
assert found.pop("rgb") == (2, True, 2)
for name, (pages, is_read, count) in found.items():
    assert (pages, is_read) == (2, True), name
    assert str(count).startswith("SyntaxError"), (name, count)
PYTHON
