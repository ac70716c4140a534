"""What CLIP's tokenizer does to a text before it looks up tokens, as open_clip and ftfy do it.

ftfy 6.3 (Apache-2.0) repairs text in many ways. All of them are here but one, the search for the
encodings that a text was read wrongly with ("cafÃ©"): a text that it would search for is refused.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.entities import html5

from tagclip.errors import VocabularyError

__all__ = ["clean_text"]

_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_TERMINAL = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")
_LINE_BREAK = re.compile("\r\n|[\r\u2028\u2029\x85]")
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _compatible(characters: str) -> dict[int, str]:
    return {ord(char): unicodedata.normalize("NFKC", char) for char in characters}


# Ligatures and digraphs of Latin letters, then full and half width.
_CHARACTERS = _compatible("ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬆ") | {ord("ﬅ"): "ſt"}
_WIDTHS = _compatible("\u3000" + "".join(map(chr, range(0xFF01, 0xFFF0))))
_QUOTES = dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(
    range(0x201C, 0x2020), '"'
)
_CONTROL = dict.fromkeys(
    (*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF,
     *range(0xFFF9, 0xFFFD))
)  # fmt: skip

# What texts in UTF-8 are mostly read with instead.
_ENCODINGS = ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso-8859-2",
              "mac-roman", "cp437")  # fmt: skip
# Character -> byte of each; bytes without a character count as Latin-1's.
_BYTES = [
    {bytes([byte]).decode(name, "ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
    for name in _ENCODINGS
]
# A character of UTF-8; of what follows the first byte, some may be lost.
_UTF8 = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf ?]|[\xe0-\xef][\x80-\xbf ?]{2}|[\xf0-\xf4][\x80-\xbf ?]{3}|\xc0\x80"
)
_LOWER, _UPPER, _SIGN = (
    f"[{''.join(filter(test, sorted(set().union(*_BYTES))))}]"
    for test in (str.islower, str.isupper, lambda char: not char.isalpha() or char in "ªºµƒˆˇ")
)
_DAMAGE = "[\x80-\x9f\ufffd]"
# What hardly any text has side by side. A sign may open or close a word.
_ODD = re.compile(
    f"(?![«‹“‘„¡¿©•](?!{_SIGN})\\w){_SIGN}[^\x00-\x7f]|[^\x00-\x7f](?![»›”’®™](?!\\w)){_SIGN}"
    f"|{_LOWER}{_UPPER}|[ÂÃ] |[ÂÃÎÐ][^\x00-\x7f]|[Œœ][^A-Za-z]"
)


def clean_text(text: str) -> str:
    """Return what the tokenizer sees: repaired Unicode, no html entities, lower case.

    Raises:
        VocabularyError: the text looks as if it was read in another encoding than its own.
    """
    lines, unescape = [], True
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        # From here on it is html, where entities are meant.
        unescape = unescape and "<" not in line
        lines.append(_repair(line, unescape))
    return " ".join(html.unescape(html.unescape("".join(lines))).split()).lower()


def _repair(line: str, unescape: bool) -> str:
    while True:
        before = line
        if unescape:
            line = _ENTITY.sub(_unescaped, line)
        if _is_misread(line):
            raise VocabularyError(
                f"{line.strip()!r:.80}: found characters such as of UTF-8 that was read in another "
                "encoding, expected a text as people write it; write it anew"
            )
        line = line.translate(_CHARACTERS).translate(_WIDTHS).translate(_QUOTES)
        line = _SURROGATES.sub(_joined, _LINE_BREAK.sub("\n", line))
        line = re.sub("[\ud800-\udfff]", "\ufffd", line)
        line = unicodedata.normalize("NFC", _TERMINAL.sub("", line).translate(_CONTROL))
        if line == before:
            return line


def _unescaped(entity: re.Match[str]) -> str:
    """The character of an entity, whose name may be all in upper case: &NTILDE; is Ñ."""
    text, plain = entity[0], html.unescape(entity[0])
    lower = text[1:].lower()
    if text[1:] in html5 or (text[1] == "#" and ";" not in plain):
        return plain
    is_upper = text[1:] == lower.upper() and lower in html5 and plain == text
    return html5[lower].upper() if is_upper else text


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _is_misread(text: str) -> bool:
    """Whether ftfy may take a text for one in another encoding; of these, it repairs fewer."""
    if re.search(_DAMAGE, text):
        return True
    return bool(_ODD.search(text)) and any(
        _UTF8.search(bytes(table.get(c, ord(c) if c.isascii() else 0) for c in text))
        for table in _BYTES
    )
