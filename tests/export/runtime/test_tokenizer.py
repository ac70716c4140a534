"""The tokenizer without dependencies against open_clip's."""

from __future__ import annotations

import html.entities
import random
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import regex
from open_clip import SimpleTokenizer
from open_clip.tokenizer import default_bpe

from tagclip.errors import VocabularyError
from tagclip.export.runtime.tokenizer import Tokenizer, _kind
from tagclip.modeling.clip.source import CLIPSource

# Contractions, other scripts, ligatures, quotes, emoji, numbers, special tokens, html, controls.
WORDS = re.split(
    " ",
    "a photo of the red bus's tail, they'd we'll CAN'T I'M you've we're traffic-light tvmonitor "
    "café naïve Zürich œuvre Ægir ß ſ 'ſ İstanbul ĲĲ ŉ straße 北京 кот СОБАКА ολα ΣΊΣΥΦΟΣ שלום "
    "مرحبا हिन्दी ไทย 한국어 東京タワー ｶﾀｶﾅ ＬＯＵＤ ﬁsh “quoted” ‘x’ don’t «été» 🐱 "
    "👩\u200d👩\u200d👧\u200d👦 🇩🇪 1234 3.14 ½ x² №5 "
    "<start_of_text> <END_OF_TEXT> <ſtart_of_text> &amp; &lt;b&gt; &eacute; &NTILDE; &#233; "
    "&#x1F600; &nosuch; &amp;amp; !!! ... '' $5 €10 ©2020 e\u0301 \x1b[31m \x07 \u3000 \u2028",
)
# First and last code point of Latin, Greek, Cyrillic, Hebrew and Arabic, Devanagari, signs, Kana,
# Han, Hangul, emoji, full and half width, and of all.
BLOCKS = (
    (0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F),
    (0x2000, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF),
    (0xFF01, 0xFFEF), (0, 0x10FFFF),
)  # fmt: skip
PUNCTUATION = "!?.,;:'\"()[]{}<>/\\|@#$%^&*-_=+~` a1\n\t"


@cache
def assigned(first: int, last: int) -> str:
    """All characters of a block that this Python knows."""
    characters = map(chr, range(first, last + 1))
    return "".join(c for c in characters if unicodedata.category(c) not in ("Cn", "Cs", "Co"))


def texts(count: int) -> list[str]:
    """Texts of every kind, always the same ones."""
    rng = random.Random(0)
    entities = [f"&{name}" for name in html.entities.html5]

    def joined(most: int, draw: Callable[[], str], separator: str = "") -> str:
        return separator.join(draw() for _ in range(rng.randint(1, most)))

    def of_one_block(characters: str) -> str:
        return joined(12, lambda: rng.choice(characters))

    kinds = (
        lambda: joined(30, lambda: chr(rng.randint(32, 126))),
        lambda: of_one_block(assigned(*rng.choice(BLOCKS))),
        lambda: joined(8, lambda: rng.choice(assigned(*rng.choice(BLOCKS)))),
        lambda: joined(4, lambda: rng.choice(entities) + rng.choice(["", ";", " "])),
        lambda: joined(20, lambda: rng.choice(PUNCTUATION)),
        lambda: joined(200, lambda: rng.choice(WORDS), " "),
        lambda: joined(8, lambda: rng.choice(WORDS), rng.choice([" ", "", "-"])),
    )
    return [rng.choice(kinds)() for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Path(default_bpe()).read_bytes())


def test_ten_thousand_texts(tokenizer: Tokenizer) -> None:
    source, refused = CLIPSource("ViT-B-16"), 0
    for text in texts(10_000):
        try:
            ids = tokenizer(text)
        except VocabularyError:
            refused += 1
            continue
        assert [ids] == source.tokenize([text]), text
    # Mixtures of signs that no word has.
    assert refused < 100
    for word in WORDS:
        tokenizer(word)


def test_every_character_is_of_the_kind_that_regex_says() -> None:
    kinds = {"L": regex.compile(r"\p{L}"), "N": regex.compile(r"\p{N}"), " ": regex.compile(r"\s")}
    # These become nothing before.
    others = set(map(chr, range(0x1C, 0x20)))
    for char in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(char) != "Cn" and char not in others:
            expected = next((kind for kind, found in kinds.items() if found.match(char)), "P")
            assert _kind(char) == expected, hex(ord(char))


def test_a_character_from_later_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(VocabularyError, match=r"^U\+FFFF: found no such character in Unicode"):
        tokenizer("\uffff")


def test_other_merges(tmp_path: Path) -> None:
    """Those of a model json are shorter than CLIP's, with or without a line feed at the end."""
    import gzip

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[:1000]
    for end in ("", "\n"):
        path = tmp_path / "merges.txt.gz"
        path.write_bytes(gzip.compress(("\n".join(lines) + end).encode()))
        mine, reference = Tokenizer(path.read_bytes()), SimpleTokenizer(bpe_path=str(path))
        assert (mine.start, mine.end) == (reference.sot_token_id, reference.eot_token_id)
        for text in ("a red bus", "the stop sign's pole", "<end_of_text>"):
            assert mine(text) == [mine.start, *reference.encode(text), mine.end]
