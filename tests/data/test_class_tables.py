"""Class lists as other tools write them: names, ids and colours, or one line of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tagclip.data.class_tables import read_class_table, read_value_table, vocabulary_text
from tagclip.errors import DatasetError, TagCLIPError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary

COLORS = {(64, 128, 64): 0, (192, 0, 128): 1}
NAMES, RGB = ("Animal", "Archway, old"), [list(color) for color in COLORS]
MMSEG = {"classes": NAMES, "palette": RGB}
CLASSES = [{"id": n, "name": name, "color": RGB[n]} for n, name in enumerate(NAMES)]
CITYSCAPES = """
from collections import namedtuple
Label = namedtuple("Label", ["name", "id", "trainId", "category", "categoryId", "hasInstances"])
raise SystemExit("never executed")
labels = [
    #       name                     id    trainId   category
    Label(  'unlabeled'            ,  0 ,      255 , 'void' , 0 , False , True  , (  0,  0,  0) ),
    Label(  'ego vehicle'          ,  1 ,      255 , 'void' , 0 , False , True  , (  0,  0,  0) ),
    Label(  'road'                 ,  7 ,        0 , 'flat' , 1 , False , False , (128, 64,128) ),
    Label(  'car'                  , 26 ,        1 , 'vehicle', 7 , True , False , (0,0,142) ),
    Label(  'license plate'        , -1 ,       -1 , 'vehicle', 7 , False , True , (0,0,142) ),
]
"""


def read(tmp_path: Path, text: str, name: str = "c.csv"):
    (tmp_path / name).write_text(text)
    return read_class_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_dict.csv", 'name,r,g,b\nAnimal,64,128,64\n"Archway, old",192,0,128\n'),
        ("c.csv", ' Name , R , G , B \nAnimal, 64, 128, 64\n"Archway, old", 192, 0, 128\n\n'),
        ("c.csv", "r;g;b;Class Name\n64;128;64;Animal\n192;0;128;Archway, old\n"),
        (
            "c.tsv",
            "id\tRed\tGreen\tBlue\tlabel\n0\t64\t128\t64\tAnimal\n1\t192\t0\t128\tArchway, old",
        ),
        ("c.csv", '\ufeffname,color\r\nAnimal,#408040\r\n"Archway, old","(192, 0, 128)"\r\n'),
        ("c.csv", 'name,r,g,b,pixels\nAnimal,64,128,64,9\n"Archway, old",192,0,128,1\n'),
        ("label_colors.txt", "64 128 64\tAnimal\n192 0 128\t\tArchway, old\n"),
        ("labelmap.txt", "# label:color_rgb\nAnimal:64,128,64::\nArchway, old:192,0,128:a,b:\n"),
        ("m.json", json.dumps(MMSEG)),
        ("m.json", json.dumps({"METAINFO": MMSEG})),
        (
            "m.py",
            f"import os\nclass D:\n    METAINFO = dict(\n    classes={NAMES}, palette={RGB})\n",
        ),
        ("m.py", f"1 / 0\nmetainfo = {MMSEG}\n"),
        ("m.py", f"class D:\n    CLASSES = {NAMES}\n    PALETTE = {RGB}\n"),
        ("v.json", json.dumps({"format": 1, "name": "v", "classes": CLASSES})),
    ],
)
def test_the_same_list_in_every_form(tmp_path: Path, name: str, text: str) -> None:
    table = read(tmp_path, text, name)
    assert table.vocabulary.names == ["Animal", "Archway, old"]
    assert [entry.ids for entry in table.vocabulary.classes] == [(0,), (1,)]
    assert table.colors == COLORS
    # And once more through the json that is written beside label files.
    (tmp_path / "again.json").write_text(vocabulary_text(table))
    again = Vocabulary.from_json(tmp_path / "again.json")
    assert again.labels == "ids" and again.classes == table.vocabulary.classes


def test_a_name_on_each_line(tmp_path: Path) -> None:
    vocabulary = read(tmp_path, "# theirs\nroad\n\nignore\nold car\n", "names.txt").vocabulary
    assert [(e.id, e.name) for e in vocabulary.classes] == [(0, "road"), (2, "old car")]
    assert vocabulary.ignored == (1,)
    with pytest.raises(VocabularyError, match="names.txt: class names"):
        read(tmp_path, "road\nRoad\n", "names.txt")


def test_cityscapes_train_ids(tmp_path: Path) -> None:
    table = read(tmp_path, CITYSCAPES, "labels.py")
    assert [(e.id, e.name) for e in table.vocabulary.classes] == [(0, "road"), (1, "car")]
    assert table.vocabulary.ignore_colors == ((0, 0, 0),)
    assert table.colors == {(0, 0, 0): 255, (128, 64, 128): 0, (0, 0, 142): 1}


def test_several_rows_of_a_class_and_what_is_ignored(tmp_path: Path) -> None:
    text = "name,id,r,g,b\na,0,1,1,1\nb,3,2,2,2\na,7,3,3,3\nignore,255,,,\nIgnore,254,9,9,9\n"
    table = read(tmp_path, text)
    assert [entry.ids for entry in table.vocabulary.classes] == [(0, 7), (3,)]
    assert table.vocabulary.ignored == (255, 254)
    assert table.colors == {(1, 1, 1): 0, (3, 3, 3): 0, (2, 2, 2): 3, (9, 9, 9): 255}


def test_ids_above_254_leave_255_to_a_class(tmp_path: Path) -> None:
    assert read(tmp_path, "name,id\na,0\nb,255\n").vocabulary.ignore_label == 65535


def test_splits_and_prompts_of_a_vocabulary_json_stay(tmp_path: Path) -> None:
    tree = {
        "format": 1,
        "name": "v",
        "labels": "colors",
        "classes": [{"id": 4, "name": "a", "color": [1, 2, 3], "prompts": ["a", "b"]}],
        "default_split": "s",
        "splits": {"s": {"seen": ["a"]}},
    }
    written = json.loads(vocabulary_text(read(tmp_path, json.dumps(tree), "v.json")))
    assert written == {**tree, "labels": "ids"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "", "found the head '', expected name and r, g, b"),
        ("c.csv", "64,128,64,Animal\n", "found the head '64,128,64,Animal'"),
        ("c.csv", "name,r,g\n", "expected name and r, g, b"),
        ("c.csv", "name,r,g,b\n", "found no class"),
        ("c.csv", "name,r,g,b\na,1,2,300\n", "line 2: b is '300', expected an integer in 0..255"),
        ("c.csv", "name,r,g,b\na,1,2\n", "line 2: b is ''"),
        ("c.csv", "name,r,g,b\n,1,2,3\n", "line 2: found no name; write the class, or ignore"),
        ("c.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", "line 3: found the color .* of 'b', which 'a'"),
        ("c.csv", "name,color\na,1 2\n", "line 2: found the color '1 2', expected red"),
        ("c.csv", "name,id\na,1\nb,1\n", "ids 1 belong to more than one class"),
        ("c.csv", "name,r,g,b\na,1,2,3\nignore,1,2,3\n", "is also the color of 'a'"),
        ("labelmap.txt", "# x\na:::\n", "'a' has no color .datumaro's VOC export"),
        ("labelmap.txt", "a:1,2,3::\nnothing\n", "line 2: found 'nothing', expected name:red"),
        ("m.json", "{}", "found no class names under 'classes'"),
        ("m.json", "[1]", "found no class names"),
        ("m.json", "{", "not a readable json file"),
        ("m.json", '{"classes": ["a"], "palette": []}', "found 0 colors in 'palette', expected 1"),
        ("m.py", "classes = (", "not a readable Python file"),
        ("m.py", "classes = get()", "found no class names"),
        ("labels.py", "Label('a', 0, 0, 'x')", "line 1: expected Label.name, id, trainId"),
        ("v.json", '{"format": 1, "name": "v"}', "'classes' is missing"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises((DatasetError, VocabularyError), match=message) as found:
        read(tmp_path, text, name)
    assert str(tmp_path / name) in str(found.value) and "\n" not in str(found.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such class list"):
        read_class_table(tmp_path / "c.csv")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="line 1 holds the byte 0xff, which is not UTF-8"):
        read_class_table(tmp_path / "c.csv")


def test_values(tmp_path: Path) -> None:
    path = tmp_path / "i.csv"
    path.write_text("value,id,note\n0,ignore,\n255, 1\n-1,ignore\n\n")
    assert read_value_table(path) == {0: None, 255: 1, -1: None}
    for text in ("", "a,b\n1,2\n", "value,id\nx,1\n", "value,id\n1\n", "value,id\n1,2\n1,3\n"):
        path.write_text(text)
        with pytest.raises(TagCLIPError, match=r"i\.csv"):
            read_value_table(path)
