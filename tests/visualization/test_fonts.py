"""Names of every script: drawn where a font has the letters, else one line says what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization import fonts
from tagclip.visualization.class_charts import class_chart, save_chart
from tagclip.visualization.panels import draw_legend
from tagclip.visualization.segments import draw_segments

# Letters of DejaVu Sans, which matplotlib brings: Latin, Cyrillic, Arabic.
PLAIN = "café кошка شجرة ★"


@pytest.fixture(autouse=True)
def system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fonts of the machine, at first none; nothing is known of any letter."""
    found: list[str] = []
    before = list(fontManager.ttflist)
    monkeypatch.setattr(fonts, "_known", {})
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: found)
    yield found
    fontManager.ttflist[:] = before


def write_font(path: Path, letters: str) -> str:
    """A font named after its file with a black square for each letter."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): name for c, name in zip(letters, names[1:], strict=True)})
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for point in ((50, 700), (750, 700), (750, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_letters_of_the_first_font_need_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: pytest.fail("looked for fonts"))
    assert fonts.families(PLAIN) == ["DejaVu Sans"] and not caplog.records


def test_missing_letters_are_named_once_with_a_package(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        draw_legend(Vocabulary.from_names(["犬", "हाथी", "🐕", "cat"]), 300)
    assert [record.getMessage() for record in caplog.records] == [
        f"No font here has {letters}, boxes are drawn instead; install one, such as the package "
        f"{package} of Debian and Ubuntu"
        for letters, package in (
            ("थ ह ा ी (DEVANAGARI)", "fonts-noto-core"),
            ("犬 (CJK)", "fonts-noto-cjk"),
            ("🐕 (symbol)", "fonts-symbola"),
        )
    ]


@pytest.mark.parametrize("kind", ["legend", "segments", "chart"])
def test_many_names_are_one_look_and_one_line(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    looks = []
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: looks.append(kind) or [])
    vocabulary = Vocabulary.from_names([chr(0x4E00 + k) for k in range(40)], seen=[True] * 40)
    if kind == "legend":
        draw_legend(vocabulary, 900)
    elif kind == "segments":
        labels = np.arange(40, dtype=np.uint8).reshape(5, 8).repeat(30, 0).repeat(30, 1)
        draw_segments(np.zeros((150, 240, 3), np.uint8), labels, vocabulary)
    else:
        save_chart(class_chart(vocabulary.names, [False] * 40, [""], "")[0], tmp_path / "a.png")
    (record,) = caplog.records
    assert looks == [kind] and len(record.getMessage()) < 250


def test_a_font_of_the_machine_is_taken_as_soon_as_it_is_there(
    system_fonts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = Vocabulary.from_names(["犬 house"], seen=[True])
    labels, black = np.zeros((60, 200), np.uint8), np.zeros((60, 200, 3), np.uint8)

    def pictures() -> list[np.ndarray]:
        figure, _ = class_chart(vocabulary.names, [False], [""], "犬")
        chart = Image.open(save_chart(figure, tmp_path / "chart.png")).convert("RGB")
        return [
            draw_legend(vocabulary, 300),
            draw_segments(black, labels, vocabulary),
            np.array(chart),
        ]

    boxes = pictures()
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system_fonts += [str(tmp_path / "broken.ttf"), write_font(tmp_path / "LastResort.ttf", "犬")]
    system_fonts += [write_font(tmp_path / "ZSerif.ttf", "犬"), write_font(tmp_path / "A.ttf", "x")]
    monkeypatch.setattr(fonts, "_known", {})
    assert fonts.families("犬 house") == ["DejaVu Sans", "ZSerif"]
    drawn = pictures()
    assert all((a != b).any() for a, b in zip(boxes, drawn, strict=True))
    # The square of the font, whole.
    legend = drawn[0] < 90
    assert np.lib.stride_tricks.sliding_window_view(legend.all(2), (7, 7)).all((2, 3)).any()


def test_upright_fonts_without_serifs_go_first(system_fonts: list[str], tmp_path: Path) -> None:
    names = ("A Serif", "B Sans Bold", "C Sans", "D")
    system_fonts += [write_font(tmp_path / f"{name}.ttf", "犬") for name in names]
    assert fonts.families("犬") == ["DejaVu Sans", "C Sans"]
