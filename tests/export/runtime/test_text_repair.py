"""Repaired texts against ftfy, character by character and in pairs that encodings mix up."""

from __future__ import annotations

import random
import sys

import ftfy
import pytest
from open_clip.tokenizer import get_clean_fn

from tagclip.errors import VocabularyError
from tagclip.export.runtime import text_repair
from tagclip.export.runtime.text_repair import clean_text


def test_every_character_alone() -> None:
    reference, refused = get_clean_fn("lower"), []
    for code in range(sys.maxunicode + 1):
        # Of the Han and Hangul characters and the planes behind them, only some.
        if (0x3400 <= code < 0xD780 or code >= 0x20000) and code % 97:
            continue
        text = f"{chr(code)}X{chr(code)}"
        try:
            assert clean_text(text) == reference(text), hex(code)
        except VocabularyError:
            refused.append(code)
    assert refused == [*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFD]


def test_what_ftfy_decodes_anew_is_refused() -> None:
    characters = sorted(set().union(*text_repair._BYTES))
    rng, changed = random.Random(0), 0
    for _ in range(50_000):
        text = rng.choice(["", "a", " ", "é"]) + "".join(rng.choices(characters, k=2))
        text += rng.choice(["", "b", " ", "1", "€"])
        if ftfy.fix_encoding(text) != text:
            changed += 1
            with pytest.raises(VocabularyError):
                clean_text(text)
    assert changed > 1000


@pytest.mark.parametrize("text", ["cafÃ©", "donâ€™t", "Ã la mode", "ÐºÐ¾Ñ‚", "a\x92b"])
def test_a_text_in_another_encoding(text: str) -> None:
    with pytest.raises(VocabularyError, match="write it anew") as caught:
        clean_text(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["café", "«été»", "Ελλάδα", "“Œuvre”", "РЁЛКА", "łódź", "Å", "10 €", "a&b <c> &amp;"]
)
def test_words_as_people_write_them(text: str) -> None:
    assert clean_text(text) == get_clean_fn("lower")(text)


def test_entities_stay_behind_a_tag() -> None:
    for text in ("&NTILDE;\n<b>\n&NTILDE;\n&amp;NTILDE;", "&amp;lt;", "&#60;b&#62; &EACUTE;"):
        assert clean_text(text) == get_clean_fn("lower")(text)
