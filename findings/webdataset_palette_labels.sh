#!/usr/bin/env bash
# Expected: decode("pil") gives a label map as Pillow opens it: a palette image, whose pixels are the
# class ids. webdataset converts to RGB and gives the colours; ids that share one cannot be told
# apart any more. decode("pill") gives gray values of the colours. The undecoded bytes keep the ids.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment webdataset==1.0.2 numpy==2.4.6 Pillow==12.3.0
"$PYTHON" - <<'PYTHON'
import io
import tarfile

import numpy as np
import webdataset
from PIL import Image

labels = np.array([[0, 1], [2, 3]], np.uint8)
image = Image.fromarray(labels)
image.putpalette([200, 0, 0, 0, 200, 0, 0, 200, 0, 0, 0, 200])
file = io.BytesIO()
image.save(file, "PNG")
with tarfile.open("a.tar", "w") as archive:
    member = tarfile.TarInfo("000000.png")
    member.size = len(file.getvalue())
    archive.addfile(member, io.BytesIO(file.getvalue()))


def sample(decoder):
    dataset = webdataset.WebDataset("a.tar", shardshuffle=False)
    return next(iter(dataset.decode(decoder) if decoder else dataset))["png"]


colors, raw = sample("pil"), sample(None)
kept = np.array(Image.open(io.BytesIO(raw)))
print("pil:", colors.mode, np.array(colors).reshape(-1, 3).tolist())
print("bytes, then Pillow:", kept.ravel().tolist())
assert colors.mode == "RGB"
assert len(np.unique(np.array(colors).reshape(-1, 3), axis=0)) == 3
assert np.array_equal(kept, labels)
PYTHON
