"""Class names as people write them: quotes as in csv, files, names that repeat."""

from __future__ import annotations

import argparse
import csv
import io
import logging
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st

from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.structures.vocabulary_words import read_asked, read_words
from tagclip.utils.class_names import split_words
from tagclip.utils.tool_parser import add_vocabulary_options


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"blue, striped fence", sand', ["blue, striped fence", "sand"]),
        (' cat ,  "dining table" , sky', ["cat", "dining table", "sky"]),
        ('"a ""quoted"" word","b"', ['a "quoted" word', "b"]),
        ('5" pipe, 3"', ['5" pipe', '3"']),
        ("cat,,dog,", ["cat", "", "dog", ""]),
        ("", [""]),
        ("new\nline, 'single, quotes'", ["new\nline", "'single", "quotes'"]),
    ],
)
def test_names_between_commas(text: str, names: list[str]) -> None:
    assert split_words(text) == names


@given(st.lists(st.text('ab ",\n').map(str.strip), min_size=1))
def test_what_csv_writes_is_read(names: list[str]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(names)
    assert split_words(text.getvalue()) == names


@pytest.mark.parametrize("text", ['"blue, fence', 'sand, "red" ball', '"', '"a""'])
def test_quotes_that_do_not_match(text: str, tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="expected a comma or the end behind a closed quote"):
        split_words(text)
    file = tmp_path / "w.txt"
    file.write_text(text)
    with pytest.raises(VocabularyError, match=r"^/.*w\.txt: class names: found"):
        read_words(str(file))


def test_words_of_every_kind(
    tiny_cfg: CfgNode, tiny_vocabulary_json: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_words(" cat , dining table") == ["cat", "dining table"]
    assert read_words("cat, Dog,CAT ,dog", dedup=True) == ["cat", "Dog"]
    file = tmp_path / "w.txt"
    file.write_text('\ufeffcat\n\n  dining table \n"blue, striped fence"\n', encoding="utf-8")
    assert read_words(str(file)) == ["cat", "dining table", "blue, striped fence"]
    assert not caplog.records
    file.write_text("tench, Tinca tinca\ncat\n")
    with caplog.at_level(logging.WARNING, logger="tagclip"):
        assert read_words(str(file)) == ["tench, Tinca tinca", "cat"]
    assert "1 lines hold a comma and are one name each, such as 'tench, Tinca" in caplog.text
    for text in (tiny_vocabulary_json, tiny_cfg.DATASETS.TEST[0]):
        assert read_words(text) == text
    with pytest.raises(VocabularyError, match=r"nowhere\.txt: cannot be read"):
        read_words("nowhere.txt", is_file=True)


@pytest.mark.parametrize("name", ["conetxt/w.txt", "w.TXT", "my words.txt"])
def test_a_list_that_is_not_there_is_no_name(name: str) -> None:
    """It would win pixels; in quotes, or beside others, it is one."""
    with pytest.raises(VocabularyError, match="no such list of names, expected one with"):
        read_words(name)
    assert read_words(f'"{name}"') == [name]
    assert read_words(f"cat, {name}") == ["cat", name]


def test_a_repeated_name_leads_to_dedup(tmp_path: Path) -> None:
    text = "'TV' = 'tv'; 'a b' = 'A b'; spell them apart, list each once, or add --dedup"
    with pytest.raises(VocabularyError, match=text):
        read_words("TV, a  b, tv, A b")
    assert read_words("cat,,,dog") == ["cat", "", "", "dog"], "the vocabulary refuses empty names"


def test_the_options(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_vocabulary_options(parser)

    def asked(*words: str) -> list[str] | str | None:
        return read_asked(parser.parse_args(words))

    assert asked() is None
    assert asked("--vocab", '"a, b", c') == ["a, b", "c"]
    assert asked("--vocab", "c, C", "--dedup") == ["c"]
    dataset = tiny_cfg.DATASETS.TEST[0]
    whole = [("--vocab", dataset), ("--vocab", "w.json"), ("--vocab-file", "w.json")]
    for words in ((), ("--vocab-from-dataset", dataset), *whole):
        with pytest.raises(ConfigError, match="--dedup: found no names in --vocab, and .*; leave"):
            asked(*words, "--dedup")
    parser.add_argument("--context")
    assert asked("--context", "a, A", "--dedup") is None
    assert asked("--vocab", dataset, "--context", "a, A", "--dedup") == dataset
    with pytest.raises(ConfigError, match="--dedup: found no names"):
        asked("--context", dataset, "--dedup")
    (tmp_path / "w.txt").write_text("c\nd\n")
    assert asked("--vocab-file", str(tmp_path / "w.txt")) == ["c", "d"]
    assert asked("--vocab-from-dataset", dataset) == dataset
    with pytest.raises(DatasetError, match="'nowhere' is not registered"):
        asked("--vocab-from-dataset", "nowhere")
