"""Remedies for label values end: a reader who does what is printed is done after two steps."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.data.label_io import check_label
from tagclip.data.label_remedies import mask_remedy
from tagclip.data.validation.findings import list_findings
from tagclip.data.validation.scan import DatasetScan, Sample, SampleScan
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import ClassEntry, Vocabulary

_FILE_ACTIONS = re.compile(r"convert|PNG|prepare_\*|right vocabulary|name their vocabulary")


def _options(text: str, tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The json after each way to do what a message says about it."""
    options = []
    for clause in text.split("; "):
        new = json.loads(json.dumps(tree))
        by_name = {entry["name"]: entry for entry in new["classes"]}
        for ids, name in re.findall(r"\"ids\": (\[.*?\]) for '(.+?)'", clause):
            by_name[name]["ids"] = json.loads(ids)
        for entry in re.findall(r"add the class (\{.*?\})", clause):
            new["classes"].append(json.loads(entry) | {"ids": [json.loads(entry)["id"]]})
        if "raise all ids" in clause:
            for entry in new["classes"]:
                entry["ids"] = [value + 1 for value in entry["ids"]]
        for value in re.findall(r'"ignore_label": (\d+|\[.*?\])', clause):
            new["ignore_label"] = json.loads(value)
        if new != tree:
            options.append(new)
        if values := re.search(r"if ([\d and]+) means? unlabelled.*or give", clause):
            new = json.loads(json.dumps(tree))
            for value in map(int, values[1].split(" and ")):
                new["classes"].append({"ids": [value], "name": f"background {value}"})
            options.append(new)
    return options


def _vocabulary(tree: dict[str, Any]) -> Vocabulary:
    tree = json.loads(json.dumps(tree))
    for entry in tree["classes"]:
        entry.pop("id", None)
    return Vocabulary.from_text(json.dumps(tree), "", "v.json")


def _advice(labels: list[np.ndarray], vocabulary: Vocabulary) -> list[str]:
    scan = DatasetScan("toy", vocabulary)
    for index, label in enumerate(labels):
        values, counts = np.unique(label, return_counts=True)
        counted = dict(zip(values.tolist(), counts.tolist(), strict=True))
        sample = Sample(str(index), None, f"{index}.png")
        scan.add(SampleScan(sample, label_size=label.shape[::-1], counts=counted))
    found = list_findings(scan, "convert the labels")
    return [finding.advice for finding in found if finding.is_problem]


def _refusal(labels: list[np.ndarray], vocabulary: Vocabulary) -> list[str]:
    for label in labels:
        try:
            check_label(label, "a.png", vocabulary, label.shape)
        except DatasetError as error:
            return [str(error).partition("; ")[2]]
    return []


@st.composite
def _cases(draw: st.DrawFn) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A class list, and label files of its and of other values."""
    first = draw(st.sampled_from([0, 0, 1, 5]))
    ids = list(range(first, first + draw(st.integers(1, 4))))
    if draw(st.booleans()) and len(ids) > 1:
        ids[-1] += draw(st.sampled_from([0, 1, 3]))
    ignored = st.sampled_from([255, 254, 0, 250, [0, 255], [255, 254]])
    tree = {
        "format": 1,
        "name": "toy",
        "classes": [{"ids": [value], "name": f"c{value}"} for value in ids],
        "ignore_label": draw(
            ignored.filter(lambda v: not set(ids) & set(v if isinstance(v, list) else [v]))
        ),
    }
    pool = [*ids, 0, 255, 254, ids[-1] + 1, 128, *range(240, 250)]
    values = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=6))
    few = draw(st.sampled_from([values, [0, 255]]))
    files = st.lists(st.lists(st.sampled_from(few), min_size=1, max_size=8), max_size=12)
    labels = [np.array([row], np.int32) for row in [few, *draw(files)]]
    return tree, labels


@settings(max_examples=500, deadline=None)
@given(_cases(), st.data())
@pytest.mark.parametrize("ask", [_advice, _refusal])
def test_two_steps_are_enough(
    ask: Any, case: tuple[dict[str, Any], list[np.ndarray]], data: st.DataObject
) -> None:
    tree, labels = case
    trees = [tree]
    # Training stops at each file: it may take a step for every unknown value.
    limit = 2 if ask is _advice else 1 + len(set(np.concatenate(labels, axis=1).flat))
    while texts := ask(labels, _vocabulary(trees[-1])):
        options = [option for text in texts for option in _options(text, trees[-1])]
        if not options:
            assert _FILE_ACTIONS.search(" ".join(texts)), texts
            break
        assert len(trees) <= limit, (trees, texts)
        trees.append(data.draw(st.sampled_from(options)))
        assert trees[-1] not in trees[:-1]


def _mask(ids: tuple[int, ...], *ignored: int, values: frozenset = frozenset({0, 255})) -> str:
    entries = tuple(ClassEntry(value, f"c{value}") for value in ids)
    first, *more = ignored
    return mask_remedy(values, Vocabulary("toy", entries, None, "", first, tuple(more)))


def test_the_foreground_of_a_mask_gets_its_class() -> None:
    two = "say in the vocabulary json \"ids\": [1, 255] for 'c1'"
    assert _mask((0, 1), 255).endswith(f'{two} and "ignore_label": 254')
    assert _mask((0, 1), 254).endswith(two)
    assert _mask((1,), 255).endswith(
        f'{two} and add the class {{"id": 0, "name": "background"}} and "ignore_label": 254'
    )
    assert _mask((1,), 0, 255).endswith(f'{two} and "ignore_label": 0')
    assert "\"ids\": [1, 255] for 'c0'" in _mask((0,), 255)
    assert "\"ids\": [2, 255] for 'c2' and \"ids\": [1, 0] for 'c1'" in _mask((1, 2), 255)
    assert "if it is 'c1', one of 3 absent classes," in _mask((0, 1, 2, 3), 255)
    assert "65535 looks like" in _mask((0, 1), 255, values=frozenset({0, 65535}))


@pytest.mark.parametrize("values", [{0}, {255}, {0, 1}, {0, 1, 255}, {1, 255}, {0, 254}])
def test_other_values_are_no_mask(values: set[int]) -> None:
    assert _mask((0, 1), 255, values=frozenset(values)) == ""
