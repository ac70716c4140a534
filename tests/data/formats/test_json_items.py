"""The items of a json list, whatever lies between them and wherever the file is cut."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagclip.data.formats import json_items
from tagclip.data.formats.export_file import find_image, read_items
from tagclip.errors import DatasetError

VALUES = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(st.dictionaries(st.text(max_size=3), VALUES), max_size=5), indent=st.booleans()
)
def test_the_items_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, items: list, indent: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"items-{chunk}.json"
    text = json.dumps(items, indent=2 if indent else None, ensure_ascii=not indent)
    path.write_text(f" {text}\n" if indent else text, encoding="utf-8-sig")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "_CHUNK", chunk)
        assert list(read_items(path, "a tool")) == items


def test_an_object_is_its_own_item(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(' {"a": [1, 2]}\n')
    assert list(read_items(tmp_path / "a.json", "a tool")) == [{"a": [1, 2]}]


@pytest.mark.parametrize(
    "text",
    ["", "[", "[{}", "[{},", "[{},]", "[{} {}]", "[{}]]", "[{}] {}", "[,]", '[{"a": ]', "[" * 9999],
)
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match="expected the json that a tool exports") as raised:
        list(read_items(path, "a tool"))
    assert str(raised.value).startswith(f"{path}: found ") and "\n" not in str(raised.value)


@pytest.mark.slow
def test_memory_holds_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_CHUNK", 1 << 16)
    path = tmp_path / "a.json"
    item = json.dumps({"rle": [1000 + i for i in range(20_000)]})
    peaks = []
    for count in (10, 200):
        path.write_text(f"[{','.join([item] * count)}]")
        tracemalloc.start()
        assert sum(1 for _ in read_items(path, "a tool")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "..\\a.png", "", "/"])
def test_names_stay_below_the_folder(name: str) -> None:
    with pytest.raises(DatasetError, match="expected one below a folder"):
        find_image([name], None)
