"""Images of two sets that are the same file: found by their bytes, whatever they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tagclip.data.datasets import shared_images as module
from tagclip.data.datasets.shared_images import shared_images

_LONG = bytes(range(256)) * 40
# Equal sizes and equal ends are no equal files.
_CONTENTS = (b"", b"a", b"b", b"ab", _LONG, b"x" + _LONG[1:], _LONG[:-1] + b"x", _LONG + b"x")


def _samples(folder: Path, contents: list[bytes]) -> list[dict[str, str]]:
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [{"file_name": str(path)} for path in paths]


@pytest.mark.parametrize("seed", range(8))
def test_equals_a_comparison_of_all_with_all(seed: int, tmp_path: Path) -> None:
    chosen = [_CONTENTS[(seed * 7 + place * (seed + 3)) % 8] for place in range(10)]
    train, test = _samples(tmp_path / "train", chosen[:5]), _samples(tmp_path / "test", chosen[4:])
    expected = []
    for sample in test:
        content = Path(sample["file_name"]).read_bytes()
        same = [s["file_name"] for s in train if Path(s["file_name"]).read_bytes() == content]
        expected += [(same[0], sample["file_name"])] if same else []
    assert expected
    assert shared_images(train, test) == expected


def test_the_same_files_need_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _samples(tmp_path / "both", [_LONG, b"a"])
    monkeypatch.setattr(module, "_digest", None)
    paths = [sample["file_name"] for sample in samples]
    assert shared_images(samples, [samples[1], samples[1], samples[0]]) == [
        (paths[1], paths[1]),
        (paths[0], paths[0]),
    ]


def test_only_files_that_may_be_equal_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(module, "_digest", read.append)
    train = _samples(tmp_path / "train", [_LONG, b"a", _LONG[:-1] + b"x"])
    test = _samples(tmp_path / "test", [b"x" + _LONG[1:], b"abc", b"b"])
    assert shared_images(train, test) == []
    assert sorted(read) == sorted([train[0]["file_name"], test[0]["file_name"]])


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    train, test = _samples(tmp_path / "a", [b"a"]), _samples(tmp_path / "b", [b"a"])
    gone = [{"file_name": str(tmp_path / name)} for name in ("gone", "lost")]
    assert len(shared_images(train + gone[:1], gone[1:] + test)) == 1


def test_named_pipes_are_not_opened(tmp_path: Path) -> None:
    """They have the size of an empty file."""
    train, test = _samples(tmp_path / "a", [b""]), _samples(tmp_path / "b", [b""])
    for folder in ("a", "b"):
        os.mkfifo(tmp_path / folder / "pipe.png")
    pipes = [{"file_name": str(tmp_path / folder / "pipe.png")} for folder in ("a", "b")]
    assert len(shared_images(train + pipes[:1], test + pipes[1:])) == 1
