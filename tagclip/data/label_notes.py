"""What label files of ``tagclip segment`` say of themselves: which run made them, of which classes.

Others, and those whose notes another tool has dropped, say nothing and are taken as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import name_key
from tagclip.utils.text import json_text, listed
from tagclip.visualization.panels import read_notes

__all__ = ["classes_note", "refuse_mixed"]


def classes_note(vocabulary: Vocabulary) -> str:
    """16 hex digits for ids and names of the classes; prompts, colours and order do not count."""
    names = sorted((entry.id, name_key(entry.name)) for entry in vocabulary.classes)
    return hashlib.sha256(json_text(names).encode()).hexdigest()[:16]


def refuse_mixed(files: Iterable[Path], vocabulary: Vocabulary | None = None) -> None:
    """Refuse label files of several class lists: read by any one of them, some are wrong.

    Earlier versions did not note the classes, but the run; those of one run are the same.

    Args:
        files: that are read together.
        vocabulary: what their values are to mean, which those that segment made of other classes
            do not; None: anything.

    Raises:
        DatasetError: names two of them, or the one of other classes.
    """
    by_classes: dict[str, Path] = {}
    by_run: dict[str, Path] = {}
    known_runs = set()
    for file in tqdm(list(files), "Notes of labels", unit="file", disable=None, delay=1):
        note, classes = read_notes(file)
        # The first word of a note is of the run, the others are of the image.
        run = note.split(" ")[0]
        if classes:
            by_classes.setdefault(classes, file)
            known_runs.add(run)
        elif run:
            by_run.setdefault(run, file)
    found = [*by_classes.values(), *(f for run, f in by_run.items() if run not in known_runs)]
    if len(found) > 1:
        raise DatasetError(
            f"{found[0]}, {found[1]}: found label files of runs of segment whose words differ, or "
            "may differ, expected those of one class list; run segment again with --overwrite, or "
            "put them into folders of their own"
        )
    if vocabulary is not None and (others := by_classes.keys() - {classes_note(vocabulary)}):
        raise DatasetError(
            f"{by_classes[others.pop()]}: found a label file that segment made with other words or "
            f"ids, expected {listed(vocabulary.names, 5)}; give the words, or the class list, that "
            "segment was given"
        )
