#!/usr/bin/env bash
# Expected: what datumaro exports holds the masks that it was given. Its COCO export calls every mask
# (not polygons) a crowd, which trainers and evaluations leave out. Its KITTI export writes 0 for
# the first class and for pixels of no class. Its VOC export, of a data set without a colour table,
# leaves the colours out of labelmap.txt, though the masks have VOC's colours.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment datumaro==1.13.12 numpy==2.2.6
"$PYTHON" - <<'PYTHON'
import json
from pathlib import Path

import numpy as np
from datumaro import AnnotationType, Dataset, DatasetItem, LabelCategories, Mask, MaskCategories
from datumaro.components.media import Image as Media
from PIL import Image


def export(form, colors=False):
    categories = {AnnotationType.label: LabelCategories.from_iterable(["tree", "car"])}
    if colors:
        categories[AnnotationType.mask] = MaskCategories({0: (0, 128, 64), 1: (0, 0, 142)})
    tree, car = np.zeros((2, 4, 6), bool)
    tree[:, :2], car[:, 4:] = True, True
    masks = [Mask(tree, label=0), Mask(car, label=1)]
    media = Media.from_numpy(np.zeros((4, 6, 3), np.uint8))
    item = DatasetItem("a", subset="train", media=media, annotations=masks)
    Dataset.from_iterable([item], categories=categories).export(form, form)
    return Path(form)


content = json.loads((export("coco_instances") / "annotations/instances_train.json").read_text())
crowds = [row["iscrowd"] for row in content["annotations"]]
print("COCO: iscrowd of two masks", crowds)
(kitti,) = export("kitti", colors=True).glob("**/semantic/a.png")
row = np.asarray(Image.open(kitti))[0].tolist()
print("KITTI: tree, tree, nothing, nothing, car, car are", row)
voc = export("voc_segmentation")
labelmap = (voc / "labelmap.txt").read_text().split()[2:]
colors = np.unique(np.asarray(Image.open(voc / "SegmentationClass/a.png")).reshape(-1, 3), axis=0)
print("VOC: labelmap.txt", labelmap, "colours of the masks", colors.tolist())
assert crowds == [1, 1]
assert row == [0, 0, 0, 0, 1, 1]
assert labelmap == ["background:::", "tree:::", "car:::"] and len(colors) == 3
PYTHON
