"""Class lists with colours as other tools write them, read as vocabularies.

Read are vocabulary json files; csv tables such as CamVid's class_dict.csv; mmsegmentation's
METAINFO (``classes`` and ``palette``) in a json or py file; CVAT's and datumaro's labelmap.txt; the
labels.py of cityscapesScripts; and text files of names, or of lines "red green blue name", as
CamVid's label_colors.txt has them. Python files are parsed, never executed.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagclip.errors import DatasetError, VocabularyError
from tagclip.structures.class_color import RGB
from tagclip.structures.vocabulary import ClassEntry, Vocabulary
from tagclip.structures.vocabulary_class import MAX_LABEL
from tagclip.utils.class_names import name_key, refuse_duplicates
from tagclip.utils.files import expand_path
from tagclip.utils.text import json_text, one_line
from tagclip.utils.text_file import NotUtf8Error, read_text_file
from tagclip.utils.untrusted import load_json

__all__ = ["ClassTable", "read_class_table", "read_value_table", "vocabulary_text"]

# Rows so called say what is unlabelled.
_IGNORED = {"ignore", "ignored", "__ignore__"}
_FORMS = (
    "a vocabulary json, csv, a txt of names, mmsegmentation's json or py, labelmap.txt or labels.py"
)
# Heads of csv columns, without case, blanks and underscores.
_HEADS = {
    "name": ("name", "class", "classname", "classes", "label", "labelname", "category"),
    "id": ("id", "value", "index", "labelid", "classid", "pixelvalue"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "color": ("color", "colour", "rgb", "hex", "colorrgb"),
}


@dataclass(frozen=True)
class ClassTable:
    """A class list and the colours of mask files.

    Attributes:
        vocabulary: the classes, each with its first colour.
        colors: label value by colour, also of further colours of a class and of unlabelled pixels.
        text: the vocabulary json that it was read from; "" if from another file.
    """

    vocabulary: Vocabulary
    colors: Mapping[RGB, int]
    text: str = ""

    @classmethod
    def of(cls, vocabulary: Vocabulary, text: str = "") -> ClassTable:
        """The colours that a vocabulary has itself; without one of a class, none."""
        colors = {entry.color: entry.id for entry in vocabulary.classes if entry.color}
        if colors:
            colors |= dict.fromkeys(vocabulary.ignore_colors, vocabulary.ignore_label)
        return cls(vocabulary, colors, text)


@dataclass(frozen=True)
class _Row:
    """One line of a table; `where` it stands begins messages."""

    where: str
    name: str
    color: RGB | None = None
    id: int | None = None
    is_ignored: bool = False


def read_class_table(path: str | Path) -> ClassTable:
    """Read a class list from any of the files that the module names.

    Ids are those of the file, else positions of the rows, from 0. Rows of one name are colours or
    values of one class; rows called ``ignore`` are what is unlabelled. Of Cityscapes' labels.py
    the train ids count, and labels without one are ignored.

    Raises:
        DatasetError: the file is missing, or of none of these kinds.
        VocabularyError: it contradicts itself.
    """
    path = Path(expand_path(path))
    text = _read_text(path)
    kind = path.suffix.lower()
    if kind == ".json":
        tree = _parsed(load_json, text, path, "json")
        if isinstance(tree, dict) and "format" in tree:
            return ClassTable.of(Vocabulary.from_text(text, "", str(path)), text)
        rows = _mmseg_rows(tree, path)
    elif kind == ".py":
        tree = _parsed(ast.parse, text, path, "Python")
        rows = _cityscapes_rows(tree, path) or _mmseg_rows(_assigned(tree), path)
    elif kind == ".txt":
        rows = _text_rows(text, path)
    else:
        rows = _csv_rows(text, path)
    return _table(rows, path)


def vocabulary_text(table: ClassTable) -> str:
    """A vocabulary json for label files of the ids of a table.

    Returns:
        The json that the table was read from, which may have splits and prompts, or a new one;
        both say that the pixels are ids.
    """
    vocabulary = table.vocabulary
    tree = (
        load_json(table.text)
        if table.text
        else {
            "format": 1,
            "name": vocabulary.name,
            "ignore_label": vocabulary.ignore_label,
            "classes": [
                {"id": e.id, "name": e.name} | ({"color": e.color} if e.color else {})
                for e in vocabulary.classes
            ],
        }
    )
    return json_text({**tree, "labels": "ids"}, indent=1) + "\n"


def read_value_table(path: str | Path) -> dict[int, int | None]:
    """Read a csv with the columns value and id: what label values become.

    Returns:
        New value by old value; None where the id is ``ignore``.

    Raises:
        DatasetError: the file is missing or no such table, or a value occurs twice.
    """
    path = Path(expand_path(path))
    lines = _csv_lines(_read_text(path), path)
    if not lines or [cell.strip().casefold() for cell in lines[0]][:2] != ["value", "id"]:
        raise DatasetError(
            f"{path}: found the head {','.join(lines[0]) if lines else ''!r}, expected value,id; "
            "write that line first"
        )
    table: dict[int, int | None] = {}
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        cells = [cell.strip() for cell in [*line, ""][:2]]
        where = f"{path}, line {number}"
        value = _number(cells[0], where, "value", -(2**31), 2**31)
        if value in table:
            raise DatasetError(f"{where}: value {value} occurs twice; keep one of its lines")
        is_ignored = cells[1].casefold() in _IGNORED
        table[value] = None if is_ignored else _number(cells[1], where, "id", 0, MAX_LABEL)
    return table


def _read_text(path: Path) -> str:
    try:
        return read_text_file(path)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such class list; expected {_FORMS}") from error
    except NotUtf8Error as error:
        raise DatasetError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise DatasetError(f"{path}: cannot be read ({reason}); expected {_FORMS}") from error


def _parsed(parse: Callable[[str], Any], text: str, path: Path, what: str) -> Any:
    try:
        return parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, csv.Error) as error:
        raise DatasetError(
            f"{path}: not a readable {what} file ({one_line(error)}); expected {_FORMS}"
        ) from error


def _table(rows: Sequence[_Row], path: Path) -> ClassTable:
    classes: dict[str, list[_Row]] = {}
    for row in rows:
        if not row.is_ignored:
            classes.setdefault(name_key(row.name), []).append(row)
    if not classes:
        raise DatasetError(f"{path}: found no class, expected one per line; name them there")
    ids: dict[str, tuple[int, ...]] = {}
    for position, (key, group) in enumerate(classes.items()):
        given = tuple(dict.fromkeys(row.id for row in group if row.id is not None))
        ids[key] = given or (position,)
    colors: dict[RGB, tuple[str, int]] = {}
    for row in rows:
        if row.color is None or row.is_ignored:
            continue
        name, _ = colors.setdefault(row.color, (row.name, ids[name_key(row.name)][0]))
        if name_key(name) != name_key(row.name):
            raise DatasetError(
                f"{row.where}: found the color {list(row.color)} of {row.name!r}, which {name!r} "
                "has, too; change one of them"
            )
    ignored = [row for row in rows if row.is_ignored]
    values = list(dict.fromkeys(row.id for row in ignored if row.id is not None))
    taken = {value for each in ids.values() for value in each}
    values = values or [255 if max(taken) < 255 else MAX_LABEL]
    more = [row.color for row in ignored if row.color]
    try:
        vocabulary = Vocabulary(
            path.stem,
            tuple(
                ClassEntry(ids[key][0], group[0].name, (), group[0].color, ids[key])
                for key, group in classes.items()
            ),
            ignore_label=values[0],
            more_ignored=tuple(values[1:]),
            ignore_colors=tuple(dict.fromkeys(more)),
        )
    except VocabularyError as error:
        raise VocabularyError(f"{path}: {error}") from error
    further = {color: value for color, (_, value) in colors.items()}
    return ClassTable(vocabulary, {**ClassTable.of(vocabulary).colors, **further})


def _csv_lines(text: str, path: Path, delimiter: str = ",") -> list[list[str]]:
    options = {"delimiter": delimiter, "skipinitialspace": True}
    return _parsed(lambda text: list(csv.reader(text.splitlines(), **options)), text, path, "csv")


def _csv_rows(text: str, path: Path) -> list[_Row]:
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    lines = _csv_lines(text, path, delimiter)
    head = [re.sub(r"[\s_]", "", cell).casefold() for cell in lines[0]] if lines else []
    columns = {
        key: next((head.index(name) for name in names if name in head), None)
        for key, names in _HEADS.items()
    }
    rgb = [columns[key] for key in "rgb"]
    has_color = None not in rgb or columns["color"] is not None
    if columns["name"] is None or not (has_color or columns["id"] is not None):
        raise DatasetError(
            f"{path}: found the head {first!r}, expected name and r, g, b (or id, or color), in "
            "any order; write it in the first line"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        where = f"{path}, line {number}"
        cells = {
            key: line[column].strip() if column is not None and column < len(line) else ""
            for key, column in columns.items()
        }
        if not cells["name"]:
            raise DatasetError(
                f"{where}: found no name; write the class, or ignore for what is unlabelled"
            )
        color = None
        if any(cells[key] for key in "rgb"):
            color = tuple(_number(cells[key], where, key, 0, 255) for key in "rgb")
        elif cells["color"]:
            color = _parse_color(cells["color"], where)
        value = _number(cells["id"], where, "id", 0, MAX_LABEL) if cells["id"] else None
        is_ignored = cells["name"].casefold() in _IGNORED
        rows.append(_Row(where, cells["name"], color, value, is_ignored))
    return rows


def _text_rows(text: str, path: Path) -> list[_Row]:
    """Lines "name:red,green,blue:parts:actions" of CVAT, or "red green blue name", or names."""
    lines = [(f"{path}, line {n}", line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(where, line) for where, line in lines if line and not line.startswith("#")]
    if not any(":" in line or line[0].isdigit() for _, line in lines):
        refuse_duplicates((line for _, line in lines), f"{path}: class names")
        return [
            _Row(where, line, None, place, line.casefold() in _IGNORED)
            for place, (where, line) in enumerate(lines)
        ]
    rows = []
    for where, line in lines:
        triple = re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)", line)
        if triple:
            *numbers, name = triple.groups()
            color = tuple(_number(number, where, "color", 0, 255) for number in numbers)
        elif ":" in line:
            # Names may have colons themselves.
            name, written, *_ = [*line.rsplit(":", 3), ""]
            if not written.strip():
                raise DatasetError(
                    f"{where}: {name!r} has no color (datumaro's VOC export leaves them out); "
                    f"write {name}:red,green,blue:: there, as the masks have them"
                )
            color = _parse_color(written, where)
        else:
            raise DatasetError(
                f"{where}: found {line!r}, expected name:red,green,blue:: or red green blue name"
            )
        rows.append(_Row(where, name.strip(), color, None, name.strip().casefold() in _IGNORED))
    return rows


def _parse_color(text: str, where: str) -> RGB:
    """Of "#rrggbb" or three numbers with anything between."""
    code = re.fullmatch(r"#?([0-9a-fA-F]{6})", text.strip())
    if code:
        return tuple(bytes.fromhex(code[1]))
    numbers = re.findall(r"[-.\w]+", text)
    if len(numbers) != 3:
        raise DatasetError(f"{where}: found the color {text!r}, expected red, green and blue")
    return tuple(_number(number, where, "color", 0, 255) for number in numbers)


def _number(text: str, where: str, what: str, low: int, high: int) -> int:
    if not re.fullmatch(r"-?\d{1,10}", text) or not low <= int(text) <= high:
        raise DatasetError(f"{where}: {what} is {text!r}, expected an integer in {low}..{high}")
    return int(text)


def _mmseg_rows(tree: object, path: Path) -> list[_Row]:
    """Of ``classes`` and ``palette``, maybe inside ``METAINFO``."""
    found = {str(key).casefold(): value for key, value in tree.items()} if _is_map(tree) else {}
    if _is_map(found.get("metainfo")):
        found = {str(key).casefold(): value for key, value in found["metainfo"].items()}
    names, palette = found.get("classes"), found.get("palette")
    is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    if not is_list or not names:
        raise DatasetError(f"{path}: found no class names under 'classes'; expected {_FORMS}")
    if palette is None:
        palette = [None] * len(names)
    if not isinstance(palette, (list, tuple)) or len(palette) != len(names):
        length = len(palette) if isinstance(palette, (list, tuple)) else palette
        raise DatasetError(
            f"{path}: found {length!r} colors in 'palette', expected {len(names)}, one per class"
        )
    rows = []
    for index, (name, color) in enumerate(zip(names, palette, strict=True)):
        where = f"{path}, palette[{index}]"
        rgb = None if color is None else _parse_color(str(color).strip("()[]"), where)
        rows.append(_Row(where, name, rgb, index))
    return rows


def _is_map(tree: object) -> bool:
    return isinstance(tree, Mapping)


def _assigned(tree: ast.Module) -> dict[str, Any]:
    """Plain values that a Python file assigns, also inside classes; the first of each name."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _literal(node.value)
            if value is not None:
                found.setdefault(node.targets[0].id.casefold(), value)
    return found


def _literal(node: ast.expr) -> Any:
    """Value of a literal or of ``dict(key=literal)``; None for anything else."""
    try:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict" and not node.args:
            return {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _cityscapes_rows(tree: ast.Module, path: Path) -> list[_Row]:
    """Of calls ``Label(name, id, trainId, category, catId, hasInstances, ignoreInEval, color)``."""
    rows = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "Label":
            continue
        values = [_literal(argument) for argument in node.args]
        where = f"{path}, line {node.lineno}"
        if len(values) != 8 or not isinstance(values[0], str) or not isinstance(values[2], int):
            raise DatasetError(
                f"{where}: expected Label(name, id, trainId, category, categoryId, hasInstances, "
                "ignoreInEval, color) with plain values"
            )
        color = _parse_color(str(values[7]).strip("()[]"), where)
        is_ignored = not 0 <= values[2] < 255
        rows.append(_Row(where, values[0], color, None if is_ignored else values[2], is_ignored))
    classes = {row.color for row in rows if not row.is_ignored}
    # The license plate has the colour of cars.
    return (
        [row for row in rows if not row.is_ignored or row.color not in classes] if classes else []
    )
