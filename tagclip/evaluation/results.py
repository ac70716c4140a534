"""What an evaluation leaves: a table in the log, metrics.json, per_class.csv, a row of results.csv.

Beside them config.yaml, its config: another run in the folder may have another one.
`read_metrics` and `read_result_rows` read them back.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

from tabulate import tabulate

from tagclip.errors import ConfigError
from tagclip.evaluation.metrics import ABSENT_AS_0
from tagclip.utils.files import make_folder, write_atomic
from tagclip.utils.run_lock import in_turn
from tagclip.utils.text import format_csv, json_text, one_line
from tagclip.utils.untrusted import load_json

__all__ = [
    "CONFIG",
    "absent_note",
    "append_result_row",
    "format_json",
    "format_table",
    "metric_rows",
    "read_metrics",
    "read_result_rows",
    "result_row",
    "split_metrics",
    "write_per_class_csv",
    "write_result",
]

# Of a run in its OUTPUT_DIR, and of an evaluation beside its result.
CONFIG = "config.yaml"
_HEADLINES = (
    "mIoU",
    "mIoU-seen",
    "mIoU-unseen",
    "hIoU",
    "pAcc",
    "pAcc-seen",
    "pAcc-unseen",
    "trusty-AUROC",
    "trusty-AUPR",
    "trusty-FPR95",
    "boundary-mIoU",
    "boundary-mIoU-seen",
    "boundary-mIoU-unseen",
    "boundary-hIoU",
    *(f"{name}{ABSENT_AS_0}" for name in ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU")),
)
_CLASS_COLUMNS = ("index", "name", "seen", "IoU", "ACC", "pixels", "other")
# Keys of metrics.json that are one value each; "metrics" and "run" are spread out behind them.
_VALUES = ("dataset", "images", "split", "vocabulary", "vocabulary_fingerprint")
# Metrics that depend on which classes are seen.
_SIDES = re.compile("seen|hIoU")
_REQUIRED = {"dataset": str, "metrics": dict, "classes": list, "run": dict, "images": int}
_NUMBER, _TREE = (int, float, NoneType), (dict, NoneType)
# What readers look into: of a class, and of the run where it says so.
_OF_CLASS = {"name": str, "seen": (bool, NoneType), "IoU": _NUMBER}
_OF_RUN = {
    **dict.fromkeys(("clip_sha256", "protocol", "setting", "training_vocabulary"), (str, NoneType)),
    **dict.fromkeys(("trained_config", "training_files"), (str, NoneType)),
    **dict.fromkeys(("seed", "iterations", "trained_iterations"), (int, NoneType)),
    "trained_unseen": (list, NoneType),
    "earlier_traces": (dict, NoneType),
    "similar_names": (list, NoneType),
}


def format_table(
    metrics: Mapping[str, float], averaged: Mapping[str, int], listed: Mapping[str, int]
) -> str:
    """Return a table of `metric_rows`, and `absent_note` below."""
    rows = metric_rows(metrics, averaged, listed)
    table = tabulate(rows, ("metric", "percent", "classes"), disable_numparse=True)
    return "\n".join(filter(None, (table, absent_note(metrics))))


def metric_rows(
    metrics: Mapping[str, float], averaged: Mapping[str, int], listed: Mapping[str, int]
) -> list[tuple[str, str, str]]:
    """Name, percent and number of classes, as texts, of those headline metrics that there are.

    Args:
        metrics: name -> percent; nan is shown as n/a.
        averaged: name of a mean -> number of classes that it averages.
        listed: name of a mean -> number of classes of the list that it is of.
    """
    return [
        (name, _number(metrics[name]), _classes(name, averaged, listed))
        for name in _HEADLINES
        if name in metrics
    ]


def _classes(name: str, averaged: Mapping[str, int], listed: Mapping[str, int]) -> str:
    if name not in averaged:
        return ""
    total = listed[name.removeprefix("boundary-").removesuffix(ABSENT_AS_0)]
    count = averaged[name]
    return f"{count} of {total}" if count < total else f"{count}"


def absent_note(metrics: Mapping[str, Any]) -> str:
    """Say which means are this project's where the metrics hold both; "" where they do not."""
    if not any(name.endswith(ABSENT_AS_0) for name in metrics):
        return ""
    return (
        "The means of this project leave out classes without labelled pixels, as detectron2's main "
        f"branch; *{ABSENT_AS_0} counts those of them that were predicted as 0, as detectron2 0.6 "
        "and mmseg."
    )


def format_json(content: Mapping[str, Any]) -> str:
    """Return one json object, nan as null; one line per key and per item of a list.

    Args:
        content: json-ready values; lists of one value per class or one row of a matrix stay
            readable.
    """
    lines = []
    for key, value in content.items():
        text = json_text(value)
        if isinstance(value, (list, tuple)) and value:
            items = ",\n  ".join(map(json_text, value))
            text = f"[\n  {items}\n ]"
        lines.append(f" {json_text(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.2f}"


def write_result(
    content: Mapping[str, Any],
    folder: str | Path | None,
    table: str | Path | None,
    config: str = "",
) -> None:
    """Write the files of one evaluation.

    Args:
        content: what ``metrics.json`` holds, nan where undefined.
        folder: for ``metrics.json``, ``per_class.csv`` and ``config.yaml``; None or "" writes none.
        table: csv that gets a row more; None or "" is none.
        config: yaml of the evaluation; "" keeps none.

    Raises:
        ConfigError: a file cannot be written, or the table is no such table.
    """
    try:
        if folder:
            path = Path(folder) / CONFIG
            if config:
                write_atomic(path, config)
            elif path.exists():
                path.unlink()
            path = path.with_name("metrics.json")
            write_atomic(path, format_json(content))
            path = path.with_name("per_class.csv")
            write_per_class_csv(path, content["classes"])
        if table:
            path = Path(table)
            append_result_row(path, result_row(content, datetime.now(UTC)))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another "
            "folder (OUTPUT_DIR, --output)"
        ) from error


def write_per_class_csv(path: str | Path, classes: Sequence[Mapping[str, Any]]) -> Path:
    """Write one line per class, in the order of the vocabulary.

    Args:
        path: the file; its folder is created.
        classes: the "classes" of ``metrics.json``: dicts with "name", "seen" (bool or None),
            "IoU" and "ACC" in percent (nan or None where undefined), "pixels", "other", those of
            them that got no class, and maybe "boundary-IoU".

    Returns:
        ``path``.
    """
    more = ("boundary-IoU",) * any("boundary-IoU" in entry for entry in classes)
    columns = (*_CLASS_COLUMNS, *more)
    rows = [
        [index, *(entry.get(name) for name in columns[1:])] for index, entry in enumerate(classes)
    ]
    return write_atomic(path, format_csv(columns, rows))


def result_row(content: Mapping[str, Any], time: datetime) -> dict[str, Any]:
    """Flatten the content of ``metrics.json`` to a row of the table of results.

    Args:
        content: "dataset", "images", "split", "metrics" (percent), "run" and the like.
        time: when the evaluation ended.

    Returns:
        "time" (ISO 8601, seconds), what was evaluated, the metrics, what "run" says, and the
        metrics by the vocabulary's own split where those are others.
    """
    row = {"time": time.isoformat(timespec="seconds")}
    row |= {key: content.get(key) for key in _VALUES}
    return {**row, **content["metrics"], **content["run"], **split_metrics(content)}


def split_metrics(content: Mapping[str, Any], key: str = "metrics_by_split") -> dict[str, Any]:
    """Metrics by the vocabulary's own split where masks of other classes have trained the model.

    Args:
        content: as in ``metrics.json``.
        key: what to take, such as ``classes_averaged_by_split``.

    Returns:
        "NAME by split" -> value, of the metrics that depend on the split; empty where the two are
        the same.
    """
    found = (content.get(key) or {}).items()
    return {f"{name} by split": value for name, value in found if _SIDES.search(name)}


def append_result_row(path: str | Path, row: Mapping[str, Any]) -> Path:
    """Append one row to a csv table; processes that do so at the same time wait for each other.

    The table is replaced as a whole: it is complete at every moment, also when the process is
    killed. A column that the table lacks is added behind the others, empty in the old rows; a
    column that the row lacks stays empty in the new one. None and nan are empty cells, floats
    are rounded to 4 digits, lists and dicts become json. An evaluation that is repeated gets a
    second row: nothing is ever replaced, the time tells them apart.

    Args:
        path: the table; it and its folder are created.
        row: column -> value; "dataset" is one of them.

    Returns:
        ``path``.

    Raises:
        ConfigError: the file is no such table.
    """
    path = Path(path).absolute()
    make_folder(path.parent)
    # Locked beside the table, which is renamed over; the lock file stays.
    with in_turn(path.with_name(f".{path.name}.lock")):
        columns, rows = read_result_rows(path)
        columns += [name for name in row if name not in columns]
        cells = [[each.get(name) for name in columns] for each in (*rows, row)]
        return write_atomic(path, format_csv(columns, cells))


def read_result_rows(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the table that `append_result_row` writes.

    Returns:
        Its columns, and its rows as column -> text; nothing if there is no such file.

    Raises:
        ConfigError: the file is no such table.
    """
    path = Path(path)
    # False, too, for what can be no file's name.
    if not os.path.isfile(path):
        return [], []
    advice = "move the file away, the next evaluation starts a new one"
    try:
        # Spreadsheet programs put a byte order mark in front.
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [cells for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a csv table ({error}); {advice}") from error
    if not lines:
        return [], []
    columns = lines[0]
    if "dataset" not in columns or len(set(columns)) < len(columns):
        raise ConfigError(
            f"{path}: found the header {','.join(columns)!r}, expected different names separated "
            f"by commas, one of them 'dataset'; {advice}"
        )
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(columns):
            raise ConfigError(
                f"{path}: row {number} has {len(cells)} cells, expected {len(columns)}; mend the "
                f"row, or {advice}"
            )
    return columns, [dict(zip(columns, cells, strict=True)) for cells in lines[1:]]


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read a ``metrics.json`` that the evaluator wrote.

    Returns:
        Its content; undefined values are None.

    Raises:
        ConfigError: the file is missing, or is no such json.
    """
    advice = "name a run that has been evaluated (tagclip evaluate)"
    try:
        content = load_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; {advice}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not a readable json file ({one_line(error)}); {advice}"
        ) from error
    for key, kind in _REQUIRED.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ConfigError(
                f"{path}: found no {key!r} of an evaluation's result, expected the metrics.json "
                f"of an inference folder; {advice}"
            )
    if wrong := next(_wrong_parts(content), ""):
        raise ConfigError(
            f"{path}: found {wrong}, expected what an evaluation writes there; evaluate again"
        )
    return content


def _wrong_parts(content: Mapping[str, Any]) -> Iterator[str]:
    """Say of each part of a ``metrics.json`` that is of another kind what it is."""
    run = {key: value for key, value in content["run"].items() if key in _OF_RUN}
    trees = {key: content.get(key) for key in ("metrics_by_split", "conventions")}
    parts = [("run", run, _OF_RUN), ("file", trees, dict.fromkeys(trees, _TREE))]
    means = trees["conventions"] if isinstance(trees["conventions"], dict) else {}
    parts.append(("conventions", means, dict.fromkeys(means, dict)))
    for key in ("metrics", "metrics_by_split"):
        numbers = content[key] if isinstance(content.get(key), dict) else {}
        parts.append((key, numbers, dict.fromkeys(numbers, _NUMBER)))
    for number, entry in enumerate(content["classes"]):
        place = f"classes[{number}]"
        is_whole = isinstance(entry, dict) and entry.keys() >= _OF_CLASS.keys()
        read = {key: entry[key] for key in _OF_CLASS} if is_whole else {"entry": entry}
        parts.append((place, read, _OF_CLASS))
    for place, values, kinds in parts:
        for key, value in values.items():
            is_flag = isinstance(value, bool) and kinds.get(key) != (bool, NoneType)
            if is_flag or not isinstance(value, kinds.get(key, ())):
                yield f"{value!r:.80} as {key} of {place}"
    pairs = content["run"].get("similar_names") or []
    yield from (f"{p!r:.80} in similar_names of run" for p in pairs if not _are_texts(p, 2))
    traces = (content["run"].get("earlier_traces") or {}).values()
    lists = [content["run"].get("trained_unseen") or [], *traces]
    yield from (f"{names!r:.80} among names of run" for names in lists if not _are_texts(names))


def _are_texts(values: object, number: int | None = None) -> bool:
    is_list = isinstance(values, list) and len(values) == (number or len(values))
    return is_list and all(isinstance(value, str) for value in values)
