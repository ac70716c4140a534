"""Class names as people write them: on a command line, in a text file, on a web page."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from detectron2.data import DatasetCatalog

from tagclip.errors import VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import name_key, refuse_duplicates
from tagclip.utils.text import error_text, one_line

__all__ = ["read_asked", "read_words", "split_words"]

logger = logging.getLogger(__name__)

# A name in quotes, whose own quotes are doubled, or all up to the next comma.
_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*(?=,|\Z)|([^,]*))')


def split_words(text: str) -> list[str]:
    """Split names at commas; one in quotes keeps its commas, as in csv (RFC 4180).

    Args:
        text: such as ``cat, "blue, striped fence"``. Empty names stay, as "".

    Raises:
        VocabularyError: a quote is not closed, or there is text behind a closed one.
    """
    names, start = [], 0
    while start <= len(text):
        found = _WORD.match(text, start)
        quoted, plain = found.groups()
        if plain is not None and plain.startswith('"'):
            raise VocabularyError(
                f"class names: found {one_line(text[start:])[:60]!r}, expected a comma or the end "
                'behind a closed quote, such as "blue, striped fence", sand; write a quote that '
                "belongs to a name twice, in quotes"
            )
        names.append((plain if quoted is None else quoted.replace('""', '"')).strip())
        start = found.end() + 1
    return names


def read_words(
    text: str, dedup: bool = False, is_file: bool = False, datasets: Collection[str] = ()
) -> list[str] | str:
    """Read what an option says: a dataset, a vocabulary json, a text file, or names with commas.

    A text file has one name per line, in quotes or not; a comma does not end it.

    Args:
        text: value of the option.
        dedup: drop names that differ from an earlier one in case or spacing only.
        is_file: whether names with commas are no choice.
        datasets: names of datasets besides the registered ones.

    Returns:
        The names, or ``text`` itself if it names a dataset or a json.

    Raises:
        VocabularyError: the text file cannot be read, quotes do not match, or names repeat.
    """
    if text in (*DatasetCatalog.list(), *datasets) or Path(text).suffix == ".json":
        return text
    names = _read_lines(text) if is_file or os.path.isfile(text) else split_words(text)
    if not dedup:
        refuse_duplicates(
            (one_line(name) for name in names if name),
            "vocabulary 'custom': class names",
            "spell them apart, list each once, or add --dedup",
        )
        return names
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(name_key(name), name)
    return list(first.values())


def _read_lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(
            f"{path}: cannot be read ({error_text(error)}), expected a UTF-8 text "
            "with one name per line, or a vocabulary json"
        ) from error
    names, commas = [], []
    for line in filter(str.strip, lines):
        try:
            words = split_words(line)
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from error
        # Class lists hold synonyms in this way.
        commas += [line.strip()] * (len(words) > 1)
        names.append(words[0] if len(words) == 1 else line.strip())
    if commas:
        logger.warning(
            "%s: %d lines hold a comma and are one name each, such as %r; put every "
            "name on a line of its own, or in quotes if the comma belongs to it",
            path, len(commas), commas[0],
        )  # fmt: skip
    return names


def read_asked(args: argparse.Namespace, datasets: Collection[str] = ()) -> list[str] | str | None:
    """Read the options of `tagclip.utils.cli.add_vocabulary_options`.

    Args:
        args: the parsed options. Datasets have to be registered before.
        datasets: names of datasets besides the registered ones.

    Returns:
        What `TagCLIPPredictor.set_vocabulary` takes; None if there is no option.

    Raises:
        VocabularyError: see `read_words`.
        DatasetError: no dataset of this name is registered with a vocabulary.
    """
    if args.vocab_from_dataset:
        if args.vocab_from_dataset not in datasets:
            Vocabulary.from_metadata(args.vocab_from_dataset)
        return args.vocab_from_dataset
    if args.vocab_file:
        return read_words(args.vocab_file, args.dedup, is_file=True)
    if args.vocab is None:
        return None
    return read_words(args.vocab, args.dedup, datasets=datasets)
