"""Names of classes as texts: how people write lists of them, how they are checked and compared."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tagclip.errors import VocabularyError
from tagclip.utils.text import error_text, one_line
from tagclip.utils.text_file import NotUtf8Error, read_text_file

__all__ = [
    "checked_name",
    "is_list_file",
    "name_key",
    "read_lines",
    "refuse_duplicates",
    "split_words",
]

logger = logging.getLogger(__name__)

# A name in quotes, whose own quotes are doubled, or all up to the next comma.
_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*(?=,|\Z)|([^,]*))')
# Of two names for two things none can be spared.
_APART = "spell them apart, or list each once"


def is_list_file(text: str) -> bool:
    """Whether a text is the path of a list of names, there or not, and no name; not in quotes."""
    return Path(text).suffix.lower() in (".txt", ".json") and "," not in text


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


def read_lines(path: str | Path) -> list[str]:
    """Read a text file with one name per line, in quotes or not; a comma does not end it.

    Raises:
        VocabularyError: it cannot be read, or quotes do not match.
    """
    try:
        lines = read_text_file(path).splitlines()
    except NotUtf8Error as error:
        raise VocabularyError(f"{path}: {error}") from error
    except OSError as error:
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


def checked_name(text: object, what: str) -> str:
    """Return a name in which every run of white space is one blank.

    Args:
        text: the name.
        what: begins the message.

    Raises:
        VocabularyError: it is no text, is empty, or holds control characters or what is no UTF-8.
    """
    if not isinstance(text, str):
        raise VocabularyError(f"{what} is {text!r}, expected a text; put it in quotes")
    if not text.strip():
        raise VocabularyError(f"{what} is empty ({text!r}); write the word that CLIP shall read")
    clean = one_line(text)
    # Cc acts on a terminal, Cs, half a surrogate pair, cannot be encoded.
    for char in clean:
        if "\udc80" <= char <= "\udcff":
            # What Python makes of a byte of the command line that it cannot decode.
            raise VocabularyError(
                f"{what} {text!r} holds the byte 0x{ord(char) - 0xDC00:x}, which is not UTF-8, "
                "expected letters; save the script that it stands in as UTF-8, and use a UTF-8 "
                "locale, such as LC_ALL=C.UTF-8"
            )
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise VocabularyError(
                f"{what} {text!r} holds the control character {char!r}; remove it"
            )
    return clean


def name_key(name: str) -> str:
    """What two spellings of one name have in common: case, spacing, Unicode form ignored."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


def refuse_duplicates(names: Iterable[str], what: str, remedy: str = _APART) -> None:
    """Raise VocabularyError if two names differ in case, spacing or Unicode form only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name_key(name), []).append(name)
    twice = [" = ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if twice:
        raise VocabularyError(
            f"{what} occur more than once (case and spacing ignored): {'; '.join(twice)}; {remedy}"
        )
