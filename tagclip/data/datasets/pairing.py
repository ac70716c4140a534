"""Pairs of image and label files by their names, and what to write where the names do not pair."""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import yaml

from tagclip.data.datasets.walk import files_below
from tagclip.data.image_io import read_header
from tagclip.errors import DatasetError

__all__ = ["NamedFiles", "Pairing"]

# Images and label files that are looked at to find out what their names have in common.
_SAMPLES, _KINDS, _CANDIDATES = 64, 16, 24
_TIFF = ("tif", "tiff")
# More files than this share without a partner are no oversight.
_OVERSIGHT = 0.25
_SEPARATORS = "_-. "
# What suffixes say about a file: other drawings of labels, labels, images.
_DRAWING = re.compile(r"colou?r|inst|depth|edge|bound|overlay|vis|panop|box", re.IGNORECASE)
_LABEL = re.compile(r"lab|mask|gt|seg|anno|truth|class|(?:^|[_\-. ])[lm]$", re.IGNORECASE)
_IMAGE = re.compile(r"^$|ima?ge?|rgb|photo|sat|left|scan|raw|^[_\-. ]?im$", re.IGNORECASE)
_LABEL_MODES = ("1", "L", "P", "I", "I;16")


class _File(NamedTuple):
    """A file: path, path below the folder without extension, extension in lower case."""

    path: str
    stem: str
    extension: str


@dataclass(frozen=True)
class NamedFiles:
    """Where the files of one kind lie, and how they are called.

    Attributes:
        what: "image" or "label".
        root: folder; those below it count, too.
        extensions: lower case, without dot; the most likely one of labels first.
        suffix: what stands between a file's name and its extension, or the end of that and one
            of the extensions, which then is the only one.
        spare: further extensions, of files that count where no other has their name.
    """

    what: str
    root: str
    extensions: tuple[str, ...]
    suffix: str = ""
    spare: tuple[str, ...] = ()

    @cached_property
    def _ends(self) -> tuple[str, tuple[str, ...]]:
        """The suffix without extension, and all the extensions that count."""
        known = self.extensions + self.spare
        stem, dot, extension = self.suffix.rpartition(".")
        return (stem, (extension.lower(),)) if dot and extension.lower() in known else (
            self.suffix, known
        )  # fmt: skip

    @property
    def stem_suffix(self) -> str:
        """The suffix without extension."""
        return self._ends[0]

    @property
    def patterns(self) -> str:
        """What the files are called, for messages."""
        return " or ".join(f"*{self.stem_suffix}.{e}" for e in self._ends[1] if e not in self.spare)

    def name_of(self, file: _File) -> str | None:
        """Path below the root without suffix and extension; None for other files."""
        suffix, extensions = self._ends
        if file.extension not in extensions or not file.stem.endswith(suffix):
            return None
        name = file.stem[: len(file.stem) - len(suffix)]
        return None if name.endswith("/") or not name else name

    def with_extension(self, path: str) -> NamedFiles:
        """Those of one extension, that of a path."""
        extension = os.path.splitext(path)[1].lower()
        return replace(self, suffix=self.stem_suffix + extension)

    def line(self) -> str:
        """The line of a config that says the suffix."""
        content = {f"{self.what}_suffix": self.suffix}
        text = yaml.safe_dump(
            content, default_flow_style=True, width=float("inf"), allow_unicode=True
        )
        return text.strip()[1:-1]


@dataclass(frozen=True)
class Pairing:
    """Two kinds of files, paired by their names: paths below the folders without suffix.

    In one folder, where the suffixes are the same, the extension tells what a file is: that of the
    labels is the first of theirs that occurs, or the first whose files have one channel if several
    occur.

    Attributes:
        images, labels: the two kinds; the folder of one may be that of the other, or in it.
    """

    images: NamedFiles
    labels: NamedFiles

    @cached_property
    def is_one_folder(self) -> bool:
        """Whether images and labels have the same folder."""
        return os.path.realpath(self.images.root) == os.path.realpath(self.labels.root)

    @cached_property
    def _files(self) -> dict[str, list[_File]]:
        """Folder -> files that are not in the other folder, if that is in this one."""
        found = {}
        for kind, other in ((self.images, self.labels), (self.labels, self.images)):
            below = os.path.relpath(other.root, kind.root)
            inner = None if below.startswith(".") else os.path.join(kind.root, below, "")
            paths = map(str, files_below(kind.root))
            # Listed paths begin with the folder as pathlib writes it, which is nothing for ".".
            start = len(str(Path(kind.root, "_"))) - 1
            found[kind.root] = [
                _File(path, stem[start:].replace(os.sep, "/"), end[1:].lower())
                for path in paths
                for stem, end in (os.path.splitext(path),)
                if not (inner and path.startswith(inner))
            ]
        return found

    def named(self, images: str, labels: str) -> Pairing:
        """The same files with other suffixes."""
        other = Pairing(replace(self.images, suffix=images), replace(self.labels, suffix=labels))
        # The folders are read once.
        other.__dict__["_files"] = self._files
        return other

    @cached_property
    def found(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Paths of the images and of the labels by name; several are ambiguous."""
        images, labels = self.images, self.labels
        one = self.is_one_folder
        if one and images.stem_suffix == labels.stem_suffix:
            labels, images = self._told_by_extension()
        return self._sorted(images, labels, one), self._sorted(labels, images, one)

    def _sorted(self, kind: NamedFiles, other: NamedFiles, one: bool) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        is_second = one and len(other.stem_suffix) > len(kind.stem_suffix)
        for file in self._files[kind.root]:
            name = kind.name_of(file)
            if name is not None and not (is_second and other.name_of(file) is not None):
                files.setdefault(name, []).append(file.path)
        spare = tuple(f".{extension}" for extension in kind.spare)
        for name, paths in files.items():
            if len(paths) > 1:
                better = (
                    [path for path in paths if not path.lower().endswith(spare)] if spare else []
                )
                files[name] = better or paths
        return files

    def _told_by_extension(self) -> tuple[NamedFiles, NamedFiles]:
        """Labels and images of one folder and one suffix."""
        images, labels = self.images, self.labels
        example = {file.extension: file.path for file in reversed(self._files[labels.root])}
        candidates = [e for e in labels._ends[1] if e in example and e not in labels.spare]
        own = images._ends[1]
        if len(candidates) > 1:
            candidates.sort(key=lambda e: (not _looks_like_label(example[e]), e in own))
        first = next(iter(candidates), "")
        theirs = _TIFF if first in _TIFF and example.keys() - set(_TIFF) else (first,) * bool(first)
        rest = tuple(extension for extension in own if extension not in theirs)
        suffix = labels.stem_suffix
        return (
            replace(labels, extensions=theirs, suffix=suffix, spare=()),
            replace(images, extensions=rest, suffix=suffix),
        )

    def unique(self) -> tuple[dict[str, str], dict[str, str]]:
        """Path of the image and of the label of each name.

        Raises:
            DatasetError: two images or two labels have the same name.
        """
        for kind, files in zip((self.images, self.labels), self.found, strict=True):
            for name, paths in files.items():
                if len(paths) > 1:
                    raise DatasetError(
                        f"{paths[0]} and {paths[1]} share the name {name!r}; "
                        f"{self._remedy_for_twins(kind)}"
                    )
        return self.certain()

    def certain(self) -> tuple[dict[str, str], dict[str, str]]:
        """As `unique`, without the names that several files have."""
        images, labels = (
            {name: paths[0] for name, paths in files.items() if len(paths) == 1}
            for files in self.found
        )
        return images, labels

    def _remedy_for_twins(self, kind: NamedFiles) -> str:
        files = self.found[kind is self.labels]
        twins = chain.from_iterable(paths for paths in files.values() if len(paths) > 1)
        lines = []
        for extension in sorted({os.path.splitext(path)[1].lower() for path in twins}):
            only = kind.with_extension(f"a{extension}")
            is_image = kind is self.images
            other = self.named(
                only.suffix if is_image else self.images.suffix,
                self.labels.suffix if is_image else only.suffix,
            )
            if other._is_complete:
                lines.append(only.line())
        move = "move one of them to another folder"
        return f"{move}, or write {' or '.join(lines)}" if lines else move

    @property
    def _is_complete(self) -> bool:
        images, labels = self.found
        return bool(images) and images.keys() == labels.keys() and not self._has_twins

    @property
    def _has_twins(self) -> bool:
        return any(len(paths) > 1 for files in self.found for paths in files.values())

    @cached_property
    def _score(self) -> tuple[int, int]:
        """How many names have both files, and minus how many have one of them."""
        images, labels = self.found
        pairs = sum(len(labels.get(name, ())) == len(paths) == 1 for name, paths in images.items())
        return pairs, 2 * pairs - len(images) - len(labels)

    def advice(self) -> str:
        """The line that pairs the files where suffixes tell them apart; "" if there is none."""
        pairs, lonely = self._score
        if -lonely <= _OVERSIGHT * (2 * pairs - lonely) and pairs:
            return ""
        numbers = [len(self._files[kind.root]) for kind in (self.images, self.labels)]
        # In one folder there may be several kinds of labels.
        enough = min(numbers) / (_KINDS if self.is_one_folder else 2)
        enough = max(enough, 2 if sum(numbers) > 4 else 1)
        candidates = (p for p in self._candidates() if p._score[0] >= enough)
        better = [p for p in candidates if p._score > self._score]
        if not better:
            return ""
        best = max(p._score for p in better)
        better = sorted((p for p in better if p._score == best), key=Pairing._doubt)
        chosen: dict[frozenset[str], Pairing] = {}
        for each in better:
            chosen.setdefault(frozenset(each._first), each)
        first, *others = chosen.values()
        kinds = {p.labels.suffix for p in others if p.images.suffix == first.images.suffix}
        also = f" (there are labels with {', '.join(sorted(kinds)[:3])}, too)" if kinds else ""
        lines = [
            new.line()
            for new, old in ((first.images, self.images), (first.labels, self.labels))
            if new.suffix != old.suffix
        ]
        return f"their names differ by a suffix{also}: write {', '.join(lines)}"

    def _candidates(self) -> Iterator[Pairing]:
        """Pairings by suffixes that occur, the most frequent first."""
        plain = self.named("", "")
        stems = [
            sorted({n for n in map(kind.name_of, self._files[kind.root]) if n is not None})
            for kind in (plain.images, plain.labels)
        ]
        images, labels = stems
        votes: Counter[tuple[str, str]] = Counter()
        for image in images[:: max(1, len(images) // _SAMPLES)]:
            for start in _starts(image, labels):
                at = bisect_left(labels, start)
                for label in labels[at : at + _KINDS]:
                    ends = image[len(start) :], label[len(start) :]
                    if label.startswith(start) and "/" not in "".join(ends):
                        votes[ends] += 1
        most = max(votes.values(), default=0)
        for ends, count in votes.most_common(_CANDIDATES):
            if count < most / 8:
                break
            pairing = self.named(*ends)
            yield pairing
            is_mixed = self.is_one_folder and not pairing._is_complete
            if (is_mixed or pairing._has_twins) and (first := pairing._first):
                # Where two extensions share a name, one of them.
                image, label = (
                    kind.with_extension(path).suffix
                    for kind, path in zip((pairing.images, pairing.labels), first, strict=True)
                )
                yield from (
                    self.named(*mixed)
                    for mixed in ((image, ends[1]), (ends[0], label), (image, label))
                )

    @cached_property
    def _first(self) -> tuple[str, ...]:
        """The files of the first pair."""
        images, labels = self.found
        name = min(images.keys() & labels.keys(), default=None)
        return () if name is None else (images[name][0], labels[name][0])

    def _doubt(self) -> tuple[int, int, int]:
        """Small where the suffixes, and the files, look as those of images and labels do."""
        image, label = self.images.stem_suffix, self.labels.stem_suffix
        doubt = 0 if _IMAGE.search(image) else 1 + bool(_LABEL.search(image))
        doubt += 2 if _DRAWING.search(label) else not _LABEL.search(label)
        if self.is_one_folder:
            files = zip(self._first, (False, True), strict=True)
            doubt += sum(2 * (_looks_like_label(path) is not wanted) for path, wanted in files)
        regular = sum(bool(s) and s[0] not in _SEPARATORS for s in (image, label))
        length = len(self.images.suffix) + len(self.labels.suffix)
        return doubt, regular, length


def _looks_like_label(path: str) -> bool:
    """Whether a file has one channel; a jpg has not, nor has what cannot be read."""
    try:
        is_label = read_header(path).mode in _LABEL_MODES
    except DatasetError:
        return False
    return is_label and not path.lower().endswith((".jpg", ".jpeg", ".webp"))


def _starts(name: str, others: Sequence[str]) -> set[str]:
    """What a name has in common with the most similar of other sorted names, whole or up to a
    separator."""
    at = bisect_left(others, name)
    near = (other for other in others[max(0, at - 1) : at + 2])
    starts = set()
    for other in near:
        start = os.path.commonprefix([name, other])
        folder, base = os.path.split(start)
        cut = base[: max(base.rfind(separator) for separator in _SEPARATORS) + 1]
        bases = (base, cut, cut.rstrip(_SEPARATORS))
        starts |= {start[: len(start) - len(base) + len(b)] for b in bases if b}
    return starts
