"""Six photos of three classes, labelled as each tool labels: the data of docs/own_data.md."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 64, 80
NAMES = ("sand", "red ball", "blue board")
COLORS = ((194, 178, 128), (220, 20, 60), (30, 60, 220))


class Scene(NamedTuple):
    """A photo, and the boxes (class, left, top, right, bottom) on sand, the later above."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    boxes: list[tuple[int, int, int, int, int]]


def scenes() -> list[Scene]:
    found = []
    for number in range(6):
        rng = np.random.default_rng(number)
        labels, boxes = np.zeros((HEIGHT, WIDTH), np.uint8), []
        for k in (1, 2):
            left, top = (int(rng.integers(2, limit // 2)) for limit in (WIDTH, HEIGHT))
            box = (k, left, top, left + 30, top + 25)
            labels[box[2] : box[4], box[1] : box[3]] = k
            boxes.append(box)
        noise = rng.integers(-20, 21, (HEIGHT, WIDTH, 3))
        pixels = np.clip(np.array(COLORS)[labels] + noise, 0, 255).astype(np.uint8)
        found.append(Scene(f"{number:03d}", pixels, labels, boxes))
    return found


def _photos(folder: Path, suffix: str = ".jpg") -> list[Scene]:
    folder.mkdir(parents=True)
    for scene in scenes():
        Image.fromarray(scene.pixels).save(folder / f"{scene.name}{suffix}", quality=95)
    return scenes()


def _masks(folder: Path, suffix: str, draw: Callable[[np.ndarray], np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scene in scenes():
        Image.fromarray(draw(scene.labels)).save(folder / f"{scene.name}{suffix}")


def _corners(box: tuple[int, int, int, int, int]) -> list[tuple[int, int]]:
    _, left, top, right, bottom = box
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ids(root: Path) -> None:
    _photos(root / "images")
    _masks(root / "labels", ".png", lambda labels: labels)


def cracks(root: Path) -> None:
    _photos(root / "images")
    _masks(root / "masks", ".png", lambda labels: (labels == 1).astype(np.uint8) * 255)


def one_folder(root: Path) -> None:
    _photos(root / "photos")
    _masks(root / "photos", "_mask.png", lambda labels: (labels == 1).astype(np.uint8) * 255)


def colors(root: Path) -> None:
    _photos(root / "images", ".png")
    _masks(root / "masks", ".png", lambda labels: np.array(COLORS, np.uint8)[labels])
    rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLORS, strict=True)]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows]) + "\n")


def coco(root: Path) -> None:
    images, annotations = [], []
    for number, scene in enumerate(_photos(root / "images"), 1):
        name = f"{scene.name}.jpg"
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for box in scene.boxes:
            polygon = [float(x) for corner in _corners(box) for x in corner]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 10 * box[0],
                    "segmentation": [polygon],
                    "area": float((box[3] - box[1]) * (box[4] - box[2])),
                    "bbox": [box[1], box[2], box[3] - box[1], box[4] - box[2]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 10 * k, "name": NAMES[k]} for k in (1, 2)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(tree))


def labelme(root: Path) -> None:
    (root / "labelme").mkdir()
    for scene in _photos(root / "images"):
        shapes = [
            {"label": NAMES[b[0]], "points": _corners(b), "shape_type": "polygon", "group_id": None}
            for b in scene.boxes
        ]
        tree = {
            "version": "5.5.0",
            "shapes": shapes,
            "imagePath": f"../images/{scene.name}.jpg",
            "imageData": None,
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
        }
        (root / "labelme" / f"{scene.name}.json").write_text(json.dumps(tree))


def label_studio(root: Path) -> None:
    tasks = []
    for number, scene in enumerate(_photos(root / "images"), 1):
        results = [
            {
                "id": f"r{k}",
                "from_name": "label",
                "to_name": "image",
                "type": "polygonlabels",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "image_rotation": 0,
                "value": {
                    "points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in _corners(box)],
                    "closed": True,
                    "polygonlabels": [NAMES[box[0]]],
                },
            }
            for k, box in enumerate(scene.boxes)
        ]
        tasks.append(
            {
                "id": number,
                "data": {"image": f"/data/upload/1/{number:08x}-{scene.name}.jpg"},
                "annotations": [{"id": number, "was_cancelled": False, "result": results}],
            }
        )
    (root / "label_studio.json").write_text(json.dumps(tasks))


def cvat(root: Path) -> None:
    labels = "".join(f"<label><name>{n}</name><attributes/></label>" for n in NAMES[1:])
    images = ""
    for number, scene in enumerate(_photos(root / "images")):
        shapes = "".join(
            f'<polygon label="{NAMES[box[0]]}" source="manual" occluded="0" z_order="{z}" '
            f'points="{";".join(f"{x:.2f},{y:.2f}" for x, y in _corners(box))}"/>'
            for z, box in enumerate(scene.boxes)
        )
        images += (
            f'<image id="{number}" name="{scene.name}.jpg" width="{WIDTH}" height="{HEIGHT}">'
            f"{shapes}</image>"
        )
    head = f"<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    (root / "annotations.xml").write_text(f"<annotations>{head}{images}</annotations>")


def datumaro(root: Path) -> None:
    items = []
    for scene in _photos(root / "datumaro" / "images" / "default"):
        shapes = [
            {
                "id": k,
                "type": "polygon",
                "group": 0,
                "label_id": box[0] - 1,
                "points": [float(x) for corner in _corners(box) for x in corner],
                "z_order": k,
            }
            for k, box in enumerate(scene.boxes)
        ]
        image = {"path": f"{scene.name}.jpg", "size": [HEIGHT, WIDTH]}
        items.append({"id": scene.name, "annotations": shapes, "image": image})
    labels = [{"name": name, "parent": "", "attributes": []} for name in NAMES[1:]]
    tree = {
        "dm_format_version": "1.0",
        "media_type": 2,
        "infos": {},
        "categories": {"label": {"labels": labels, "attributes": []}},
        "items": items,
    }
    (root / "datumaro" / "annotations").mkdir()
    (root / "datumaro" / "annotations" / "default.json").write_text(json.dumps(tree))


def supervisely(root: Path) -> None:
    project = root / "supervisely"
    (project / "ds" / "ann").mkdir(parents=True)
    classes = [
        {"title": NAMES[k], "shape": "bitmap", "color": "#{:02x}{:02x}{:02x}".format(*COLORS[k])}
        for k in (1, 2)
    ]
    (project / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    for scene in _photos(project / "ds" / "img"):
        objects = []
        for k, left, top, right, bottom in scene.boxes:
            buffer = io.BytesIO()
            mask = np.full((bottom - top, right - left), 255, np.uint8)
            Image.fromarray(mask).convert("1").save(buffer, "PNG")
            data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
            objects.append(
                {
                    "classTitle": NAMES[k],
                    "geometryType": "bitmap",
                    "bitmap": {"data": data, "origin": [left, top]},
                }
            )
        tree = {"size": {"height": HEIGHT, "width": WIDTH}, "tags": [], "objects": objects}
        (project / "ds" / "ann" / f"{scene.name}.jpg.json").write_text(json.dumps(tree))


def yolo_seg(root: Path) -> None:
    for folder in ("images", "labels"):
        (root / "yolo" / folder).mkdir(parents=True)
    for scene in scenes():
        Image.fromarray(scene.pixels).save(root / "yolo" / "images" / f"{scene.name}.jpg")
        lines = []
        for box in scene.boxes:
            corners = (f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in _corners(box))
            lines.append(" ".join([str(box[0] - 1), *corners]))
        (root / "yolo" / "labels" / f"{scene.name}.txt").write_text("\n".join(lines) + "\n")
    names = "\n".join(f"  {k}: {name}" for k, name in enumerate(NAMES[1:]))
    (root / "yolo" / "data.yaml").write_text(f"path: .\ntrain: images\nnames:\n{names}\n")
