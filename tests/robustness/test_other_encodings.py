"""Text files in other encodings, as editors and spreadsheets of Windows save them: one line says
so, whatever the file is for, and saving it as UTF-8 ends the trouble."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tagclip.config import load_config
from tagclip.data.class_tables import read_class_table
from tagclip.data.datasets.image_list import read_lines
from tagclip.data.formats import labelme, yolo_seg
from tagclip.errors import TagCLIPError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_words import read_words

TEXTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "mine.yaml": ("# one\n# Straße\nSEED: 3\n", lambda path: load_config(path).SEED),
    "mine.json": (
        '{"format": 1, "name": "street",\n "classes": [{"id": 0, "name": "Straße"}]}',
        lambda path: Vocabulary.from_json(path).names,
    ),
    "excel.csv": ("name,id\nStraße,0\n", lambda path: read_class_table(path).vocabulary.names),
    "names.txt": ("Haus\nStraße\n", lambda path: read_class_table(path).vocabulary.names),
    "labelmap.txt": (
        "Haus:1,2,3::\nStraße:4,5,6::\n",
        lambda path: read_class_table(path).vocabulary.names,
    ),
    "words.txt": ("Haus\nStraße\n", lambda path: read_words(str(path))),
    "train.txt": ("a\nStraße\n", read_lines),
    "yolo/data.yaml": ("# one\nnames: [Straße]\n", lambda path: yolo_seg.class_names(path)),
    "yolo/classes.txt": ("Haus\nStraße\n", lambda path: yolo_seg.class_names(path.parent)),
    "labelme/labels.txt": ("Haus\nStraße\n", lambda path: labelme.class_names(path.parent)),
    "labelme/a.json": (
        '{"shapes":\n [{"label": "Straße", "points": [[0, 0], [0, 9], [9, 9]],\n'
        '   "shape_type": "polygon"}], "imageHeight": 9, "imageWidth": 9}',
        lambda path: labelme.class_names(path),
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_saving_it_as_utf8_is_what_helps(tmp_path: Path, name: str) -> None:
    text, read = TEXTS[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for encoding, line, byte in (("cp1252", 2, "df"), ("utf-16", 1, "ff")):
        path.write_text(text, encoding=encoding)
        with pytest.raises(TagCLIPError) as caught:
            read(path)
        assert str(caught.value) == (
            f"{path}: line {line} holds the byte 0x{byte}, which is not UTF-8; save the file as "
            "UTF-8"
        )
    found = []
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(text, encoding=encoding)
        found.append(read(path))
    assert found[0] == found[1] and (found[0] == 3 or "Straße" in found[0])
