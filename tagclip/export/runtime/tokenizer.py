"""CLIP's tokenizer: byte pairs that were found to be frequent become one token, in their order."""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from tagclip.errors import VocabularyError
from tagclip.export.runtime.text_repair import clean_text

__all__ = ["Tokenizer"]

# Of all lines of the list, CLIP takes the first merges: 49152 tokens with bytes and special ones.
_NUM_MERGES = 49152 - 256 - 2
_SPECIAL = ("<start_of_text>", "<end_of_text>")
_WHOLE = re.compile(f"{'|'.join(_SPECIAL)}|'(?:s|t|re|ve|m|ll|d)", re.IGNORECASE)
# What stands for each byte in the list: itself, where that can be seen.
_SEEN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = [byte for byte in range(256) if byte not in _SEEN]
_UNITS = {byte: chr(byte) for byte in _SEEN} | {b: chr(256 + i) for i, b in enumerate(_HIDDEN)}


class Tokenizer:
    """Texts -> token ids, the same as open_clip's ``SimpleTokenizer``.

    Attributes:
        start: id of the token before every text.
        end: id of the token behind it, the largest one.
    """

    def __init__(self, merges: bytes) -> None:
        """Read the list of merges.

        Args:
            merges: gzipped text, a heading and then two parts of a token per line, the most
                frequent first; ``bpe_simple_vocab_16e6.txt.gz`` of CLIP, or one like it.

        Raises:
            OSError, EOFError, ValueError, zlib.error: it is something else.
        """
        lines = gzip.decompress(merges).decode().split("\n")[1 : _NUM_MERGES + 1]
        pairs = [tuple(line.split()) for line in lines]
        units = list(_UNITS.values())
        tokens = [*units, *(f"{unit}</w>" for unit in units), *map("".join, pairs), *_SPECIAL]
        self._ids = {token: index for index, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.start, self.end = (self._ids[token] for token in _SPECIAL)
        self._word_ids = lru_cache(1 << 16)(self._merge)

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text from start to end token, of any number.

        Raises:
            VocabularyError: the text holds characters that cannot be read as open_clip reads them.
        """
        words = _words(clean_text(text))
        return [self.start, *(index for word in words for index in self._word_ids(word)), self.end]

    def _merge(self, word: str) -> tuple[int, ...]:
        units = "".join(_UNITS[byte] for byte in word.encode())
        if units in _SPECIAL:
            return (self._ids[units],)
        parts = [*units[:-1], f"{units[-1]}</w>"]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, _NUM_MERGES))
            if pair not in self._ranks:
                break
            merged, at = [], 0
            while at < len(parts):
                width = 2 if tuple(parts[at : at + 2]) == pair else 1
                merged.append("".join(parts[at : at + width]))
                at += width
            parts = merged
        return tuple(self._ids[part] for part in parts)


def _words(text: str) -> Iterator[str]:
    """Cut a text into contractions, runs of letters, single digits and runs of other signs."""
    start = 0
    while start < len(text):
        kind, end = _kind(text[start]), start + 1
        if whole := _WHOLE.match(text, start):
            end = whole.end()
        elif kind in "LP":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            yield text[start:end]
        start = end


@lru_cache(1 << 16)
def _kind(char: str) -> str:
    """L of letters, N of numbers, a blank, or P of all others."""
    category = unicodedata.category(char)
    if category == "Cn":
        raise VocabularyError(
            f"U+{ord(char):04X}: found no such character in Unicode {unicodedata.unidata_version}, "
            "which this Python knows, expected one; write the name without it, or take a newer "
            "Python"
        )
    if category[0] in "LN":
        return category[0]
    return " " if char.isspace() else "P"
