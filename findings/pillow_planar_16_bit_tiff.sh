#!/usr/bin/env bash
# Expected: an image of 16 bits per channel, as satellites and scanners write it, is read or refused,
# however its channels lie in the TIFF. Interleaved, Pillow gives the upper bytes; with one plane per
# channel and no compression it gives other pixels, without an error.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment Pillow==12.3.0 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import io
import struct

import numpy as np
from PIL import Image

pixels = np.random.default_rng(0).integers(0, 1 << 16, (3, 5, 3), dtype=np.uint16)
height, width = pixels.shape[:2]


def tiff(planar):
    """Baseline TIFF, little-endian, uncompressed; PlanarConfiguration 1 or 2."""
    strips = [plane.tobytes() for plane in pixels.transpose(2, 0, 1)] if planar else [pixels.tobytes()]
    data = 8 + 2 + 10 * 12 + 4
    offsets = [data + sum(map(len, strips[:index])) for index in range(len(strips))]
    tags = [(256, [width]), (257, [height]), (258, [16] * 3), (259, [1]), (262, [2]), (273, offsets)]
    tags += [(277, [3]), (278, [height]), (279, list(map(len, strips))), (284, [1 + planar])]
    entries, arrays = b"", b""
    for tag, values in tags:
        field = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            place, arrays = data + len(b"".join(strips)) + len(arrays), arrays + field
            field = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, 4, len(values)) + field
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + b"".join(strips) + arrays


for planar in (False, True):
    image = Image.open(io.BytesIO(tiff(planar)))
    right = float((np.asarray(image) == pixels >> 8).mean())
    print("planes" if planar else "interleaved", image.mode, f"{right:.0%} of the values are right")
    assert image.mode == "RGB" and (right < 0.5 if planar else right == 1)
PYTHON
