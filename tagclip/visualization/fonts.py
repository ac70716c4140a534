"""Fonts for the letters of every script, as far as this machine has them."""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

from tagclip.utils.text import shortened

# Pictures need no figure, which takes matplotlib twice as long to import.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["families", "set_fonts"]

logger = logging.getLogger(__name__)

# It comes with matplotlib, so it is there.
_FIRST = "DejaVu Sans"
_IDEOGRAPHS = ("CJK", "FULLWIDTH", "HANGUL", "HIRAGANA", "KATAKANA")
# Letter -> family that has it; None: no font of this machine does.
_known: dict[str, str | None] = {}

# Said in one line, below; and what has no bold font is drawn without.
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def families(text: str) -> list[str]:
    """Families with all letters of a text, as far as there are; for matplotlib.

    A letter that no font has is logged once, with a package that has it. To ask for many texts,
    joined, before one after the other is drawn is one look at the fonts and one line per script.
    """
    letters = set(text) - _known.keys()
    if letters:
        _find(letters)
    return list(dict.fromkeys([_FIRST, *(_known[c] or _FIRST for c in text)]))


def set_fonts(figure: Figure) -> None:
    """Give every text of a figure fonts that have its letters."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families("".join(text.get_text() for text in texts))
    for text in texts:
        text.set_fontfamily(families(text.get_text()))


def _find(letters: set[str]) -> None:
    first = FT2Font(fontManager.findfont(_FIRST))
    missing = {c for c in letters if c.isprintable() and not first.get_char_index(ord(c))}
    _known.update(dict.fromkeys(letters - missing, _FIRST))
    fonts = _system_fonts() if missing else iter(())
    while missing and (path := next(fonts, None)):
        try:
            font = FT2Font(path)
            found = {c for c in missing if font.scalable and font.get_char_index(ord(c))}
            if found and font.family_name not in fontManager.get_font_names():
                fontManager.addfont(path)
        except (OSError, RuntimeError):
            continue
        _known.update(dict.fromkeys(found, font.family_name))
        missing -= found
    _known.update(dict.fromkeys(missing))
    scripts: dict[tuple[str, str], list[str]] = {}
    for c in sorted(missing):
        scripts.setdefault(_script(c), []).append(c)
    for (script, package), found in scripts.items():
        logger.warning(
            "No font here has %s (%s), boxes are drawn instead; install one, such as the package "
            "%s of Debian and Ubuntu", shortened(" ".join(found), 60), script, package,
        )  # fmt: skip


def _system_fonts() -> Iterator[str]:
    """Files, upright ones without serifs first; asked anew, as matplotlib's list may be old."""

    def rank(path: str) -> tuple[bool, bool, str]:
        name = path.rsplit("/", 1)[-1].lower()
        is_odd = any(word in name for word in ("serif", "mono", "bold", "italic", "oblique"))
        return "sans" not in name, is_odd, path

    paths = [str(path) for path in findSystemFonts() if "lastresort" not in str(path).lower()]
    yield from sorted(paths, key=rank)


def _script(letter: str) -> tuple[str, str]:
    """Name of a letter's script, and a package with a font for it."""
    script = unicodedata.name(letter, "unnamed").split()[0]
    if script in _IDEOGRAPHS:
        return script, "fonts-noto-cjk"
    is_symbol = unicodedata.category(letter) == "So"
    return ("symbol", "fonts-symbola") if is_symbol else (script, "fonts-noto-core")
