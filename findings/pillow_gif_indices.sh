#!/usr/bin/env bash
# Expected: the indices of a palette image, class ids, come back from a GIF as they do from PNG, BMP
# and TIFF. Pillow drops the unused colours of a GIF and renumbers the indices.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment Pillow==12.3.0 numpy==2.4.6
"$PYTHON" - <<'PYTHON'
import numpy as np
from PIL import Image

ids = np.array([[0, 3, 7, 7]], np.uint8)
image = Image.frombytes("P", (4, 1), ids.tobytes())
image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
for kind in ("png", "bmp", "tif", "gif"):
    image.save(f"label.{kind}")
    found = Image.open(f"label.{kind}")
    values = np.asarray(found)
    same_colours = (np.asarray(found.convert("RGB")) == np.asarray(image.convert("RGB"))).all()
    print(kind, found.mode, values.tolist(), "same colours" if same_colours else "other colours")
    assert same_colours and (values == ids).all() == (kind != "gif")
PYTHON
