"""Class names as people write them: on a command line, in a text file, on a web page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from detectron2.data import DatasetCatalog

from tagclip.errors import ConfigError, VocabularyError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.class_names import (
    is_list_file,
    name_key,
    read_lines,
    refuse_duplicates,
    split_words,
)
from tagclip.utils.text import one_line

__all__ = ["read_asked", "read_words"]


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
        VocabularyError: the text file is missing or cannot be read, quotes do not match, or names
            repeat.
    """
    if _is_whole_list(text, datasets):
        return text
    is_file = is_file or os.path.isfile(text)
    if not is_file and is_list_file(text):
        raise VocabularyError(
            f"{text}: no such list of names, expected one with a name per line; check the path"
        )
    names = read_lines(text) if is_file else split_words(text)
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


def read_asked(args: argparse.Namespace, datasets: Collection[str] = ()) -> list[str] | str | None:
    """Read the options of `tagclip.utils.cli.add_vocabulary_options`.

    Args:
        args: the parsed options. Datasets have to be registered before.
        datasets: names of datasets besides the registered ones.

    Returns:
        What `TagCLIPPredictor.set_vocabulary` takes; None if there is no option.

    Raises:
        ConfigError: there are no names among which --dedup would find equal ones.
        VocabularyError: see `read_words`.
        DatasetError: no dataset of this name is registered with a vocabulary.
    """
    # Names that compete, of tools with --context, are read elsewhere, but with the same option.
    lists = [each for each in (args.vocab, getattr(args, "context", None)) if each is not None]
    names = [each for each in lists if not _is_whole_list(each, datasets)]
    names += [each for each in [args.vocab_file] if each and not _is_json(each)]
    if args.dedup and not names:
        raise ConfigError(
            "--dedup: found no names in --vocab, and no text file in --vocab-file, expected one, "
            "of whose equal names the first is kept; leave --dedup out"
        )
    if args.vocab_from_dataset:
        if args.vocab_from_dataset not in datasets:
            Vocabulary.from_metadata(args.vocab_from_dataset)
        return args.vocab_from_dataset
    if args.vocab_file:
        return read_words(args.vocab_file, args.dedup, is_file=True)
    if args.vocab is None:
        return None
    return read_words(args.vocab, args.dedup, datasets=datasets)


def _is_whole_list(text: str, datasets: Collection[str]) -> bool:
    """Whether an option names a dataset or a vocabulary json, whose names are as they are."""
    return text in (*DatasetCatalog.list(), *datasets) or _is_json(text)


def _is_json(text: str) -> bool:
    return Path(text).suffix == ".json"
