#!/usr/bin/env bash
# Expected: a category of a COCO json whose id is 0 is a class like the others, as for pycocotools.
# datumaro lists it among the classes, but its annotations come back without a label: 0 is no class
# to it, says a warning in the log. Written again as COCO, they have lost their class.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment datumaro==1.13.12
"$PYTHON" - <<'PYTHON'
import json
import logging
from pathlib import Path

from datumaro import Dataset
from datumaro.components.annotation import AnnotationType

logging.disable()
for folder in ("annotations", "images/val"):
    Path(folder).mkdir(parents=True)
row = {"image_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "area": 8, "bbox": [0, 0, 4, 4], "iscrowd": 0}
content = {
    "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
    "annotations": [{**row, "id": 1 + k, "category_id": k} for k in (0, 1)],
    "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
}
Path("annotations/instances_val.json").write_text(json.dumps(content))
dataset = Dataset.import_from(".", "coco_instances")
names = [label.name for label in dataset.categories()[AnnotationType.label]]
(item,) = dataset
found = {a.id: a.label for a in item.annotations}
print("classes", names, "labels of annotations 1 and 2", found[1], found[2])
assert names == ["cat", "dog"] and found == {1: None, 2: 1}
PYTHON
