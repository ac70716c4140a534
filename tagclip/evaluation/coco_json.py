"""Label maps as a COCO json, which ``pycocotools.coco.COCO`` and whatever reads COCO open.

::

    {"info": {"description": ...},
     "images": [{"id": 1, "file_name": "a.jpg", "height": 480, "width": 640}],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": {"size": [480, 640],
       "counts": "..."}, "area": 1234, "bbox": [x, y, width, height], "iscrowd": 0, "score": 0.9}],
     "categories": [{"id": 7, "name": "cat", "supercategory": "seen"}]}

One annotation is one class on one image, a compressed RLE in pixels of the image. ``category_id``
is the value of the class in the label files, as in COCO-Stuff and in what detectron2 writes of
datasets with ids; ``supercategory`` is "seen" or "unseen", by the split or, in the demo, as for
the gate, and "class" without a split; it does not say whose masks trained the model. ``score`` is
the mean score of the pixels. Pixels without a class are in no annotation. ``annotations`` alone are
results for ``COCO.loadRes``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tagclip.data.formats.labelled_image import LabelledImage
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic
from tagclip.utils.text import json_text

__all__ = ["annotations_of", "categories_of", "format_coco", "number_images", "write_coco"]


def categories_of(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return ``categories``, in the order of the K classes."""
    seen = vocabulary.seen or [None] * len(vocabulary)
    groups = {True: "seen", False: "unseen", None: "class"}
    return [
        {"id": entry.id, "name": entry.name, "supercategory": groups[flag]}
        for entry, flag in zip(vocabulary.classes, seen, strict=True)
    ]


def number_images(files: Sequence[str]) -> dict[str, int]:
    """Give every image its id: the number that its file is called, as COCO does.

    Args:
        files: of all images, in order; where not all are called by numbers of their own, ids are
            1 to N.
    """
    stems = [PurePosixPath(file).stem for file in files]
    if all(stem.isascii() and stem.isdecimal() for stem in stems):
        numbers = list(map(int, stems))
        if len(set(numbers)) == len(files):
            return dict(zip(files, numbers, strict=True))
    return {file: number for number, file in enumerate(files, 1)}


def annotations_of(
    labels: np.ndarray, output: Mapping[str, Any], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Return the annotations of an image, by class, without ``id`` and ``image_id``.

    Args:
        labels: (H, W) indices of classes; negative ones are in no annotation.
        output: of the model: ``sem_seg_scores`` (H, W), the score of each label, or ``sem_seg``
            (K, H, W), those of all classes; without, there is no ``score``.
        vocabulary: the K classes.
    """
    scores = output.get("sem_seg_scores")
    if scores is None and "sem_seg" in output:
        scores = output["sem_seg"].amax(dim=0)
    if scores is not None:
        scores = scores.float().cpu().numpy()
    found = []
    for k in np.unique(labels[labels >= 0]).tolist():
        mask = labels == k
        segment = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        row = {
            "category_id": vocabulary.classes[k].id,
            "segmentation": segment | {"counts": segment["counts"].decode("ascii")},
            "area": int(mask.sum()),
            "bbox": coco_mask.toBbox(segment).tolist(),
            "iscrowd": 0,
        }
        if scores is not None:
            row["score"] = round(float(scores[mask].mean()), 4)
        found.append(row)
    return found


def format_coco(
    description: str,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Iterable[Mapping[str, Any]],
) -> str:
    """Return the text of the json, a row per line; annotations get their ``id``, 1 to N."""
    numbered = ({"id": number, **row} for number, row in enumerate(annotations, 1))
    parts = {"images": images, "annotations": numbered, "categories": categories}
    texts = [f'"info": {json_text({"description": description})}']
    for name, rows in parts.items():
        texts.append(f'"{name}": [\n' + ",\n".join(map(json_text, rows)) + "\n]")
    return "{" + ",\n".join(texts) + "}\n"


def write_coco(output: Path, images: Iterable[LabelledImage], vocabulary: Vocabulary) -> list[Path]:
    """Write annotations.json.

    Args:
        output: folder.
        images: with their labels.
        vocabulary: their classes. Where one has id 0, ``category_id`` is the id plus 1, for all
            classes: datumaro takes category 0 for no class.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    first = int(any(entry.id == 0 for entry in vocabulary.classes))
    found = {}
    for image in images:
        height, width = image.labels.shape
        row = {"file_name": image.file, "height": height, "width": width}
        annotations = annotations_of(image.labels, {}, vocabulary)
        for annotation in annotations:
            annotation["category_id"] += first
        found[image.file] = row, annotations
    ids = number_images(list(found))
    text = format_coco(
        f"predictions of {vocabulary.name}",
        ({"id": ids[file], **row} for file, (row, _) in found.items()),
        ({"image_id": ids[file], **row} for file, (_, rows) in found.items() for row in rows),
        ({**row, "id": row["id"] + first} for row in categories_of(vocabulary)),
    )
    return [write_atomic(output / "annotations.json", text)]
