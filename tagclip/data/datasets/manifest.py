"""The record that a prepare script leaves beside a folder of label files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import format_names, is_int
from tagclip.utils.class_names import name_key
from tagclip.utils.files import write_atomic
from tagclip.utils.in_the_way import lowest_there
from tagclip.utils.text import error_text, json_text
from tagclip.utils.untrusted import load_json

__all__ = ["LabelManifest", "LabelOrigin"]

_FORMAT = 1


@dataclass(frozen=True)
class LabelOrigin:
    """What decides the content of label files.

    Attributes:
        folder: of the raw files; below the root of all datasets its path from there, so that the
            root may be moved.
        label_map: what their values mean: name of a json in `label_maps`.
    """

    folder: str
    label_map: str

    def __str__(self) -> str:
        return f"{self.folder} ({self.label_map})"


@dataclass(frozen=True)
class LabelManifest:
    """What is known about a folder of label files.

    The files hold one value per class and one for unlabelled pixels.

    Attributes:
        vocabulary: name of the class list.
        ids: label value of each class name.
        ignore_label: value of unlabelled pixels.
        num_images: label files.
        expected_images: label files of the whole benchmark.
        complete: False while files are being written.
        sources: what the files are made from; the first one that has an image's label gives it.
            Empty in records of earlier versions, which do not say it.
    """

    vocabulary: str
    ids: Mapping[str, int]
    ignore_label: int
    num_images: int
    expected_images: int
    complete: bool
    sources: tuple[LabelOrigin, ...] = ()

    @classmethod
    def of(
        cls,
        vocabulary: Vocabulary,
        num_images: int,
        expected_images: int,
        complete: bool,
        sources: Sequence[LabelOrigin] = (),
    ) -> LabelManifest:
        """Describe labels of a vocabulary."""
        return cls(
            vocabulary.name,
            {entry.name: entry.id for entry in vocabulary.classes},
            vocabulary.ignore_label,
            num_images,
            expected_images,
            complete,
            tuple(sources),
        )

    @classmethod
    def read(cls, path: str | Path) -> LabelManifest | None:
        """Read the json; None if there is none.

        Raises:
            DatasetError: it is damaged or of another format.
        """
        try:
            tree = load_json(Path(path).read_text(encoding="utf-8"))
            if tree.pop("format") != _FORMAT:
                raise ValueError(f"format is not {_FORMAT}")
            sources = tuple(LabelOrigin(**each) for each in tree.pop("sources", ()))
            return cls(**tree, sources=sources)._checked()
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise DatasetError(
                f"{lowest_there(path)}: found a file, expected a folder for prepared labels; move "
                "it away and run the dataset's prepare script again"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path}: not a record of prepared labels ({error_text(error)}); move it away "
                "and run the dataset's prepare script again"
            ) from error

    def _checked(self) -> LabelManifest:
        numbers = (self.ignore_label, self.num_images, self.expected_images)
        if not isinstance(self.ids, dict) or not isinstance(self.vocabulary, str):
            raise TypeError("ids is no object of label values, or vocabulary no text")
        if not all(map(is_int, (*numbers, *self.ids.values()))) or self.complete not in (0, 1):
            raise TypeError("found other values than integers and complete true or false")
        texts = [text for each in self.sources for text in (each.folder, each.label_map)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("sources names a folder or a label_map that is no text")
        return self

    def write(self, path: str | Path) -> None:
        """Write the json, unless it says the same already."""
        text = json_text({"format": _FORMAT, **asdict(self)}, indent=1) + "\n"
        path = Path(path)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)

    def check_classes(self, vocabulary: Vocabulary, path: str | Path, remedy: str) -> None:
        """Refuse labels of other classes, of another order, or with another ignore value.

        Args:
            vocabulary: the class list that is going to read the labels.
            path: the json, for the message.
            remedy: what to do, for the message.

        Raises:
            DatasetError: ids, names or the ignore label differ.
        """
        mine = {name_key(name): value for name, value in self.ids.items()}
        other = {name_key(entry.name): entry.id for entry in vocabulary.classes}
        if self.ignore_label != vocabulary.ignore_label:
            found = f"ignore label {self.ignore_label}, not {vocabulary.ignore_label}"
        elif mine.keys() != other.keys():
            found = f"other classes, such as {format_names(mine.keys() ^ other.keys(), 3)}"
        else:
            moved = [name for name, value in other.items() if mine[name] != value]
            if not moved:
                return
            found = f"another class order, such as {moved[0]!r} as {mine[moved[0]]}, not "
            found += f"{other[moved[0]]}"
        raise DatasetError(
            f"{path}: the labels are of {self.vocabulary} with {found}, expected vocabulary "
            f"{vocabulary.name}; {remedy}"
        )

    def check_sources(self, sources: Sequence[LabelOrigin], path: str | Path, remedy: str) -> None:
        """Refuse to add to labels that were made from other files, or by another class order.

        Sources behind those that are known give labels to further images alone. A record of an
        earlier version is taken for one of the same sources.

        Args:
            sources: what further labels are going to be made from.
            path: the json, for the message.
            remedy: what to do, for the message.

        Raises:
            DatasetError: they differ.
        """
        if self.sources != tuple(sources[: len(self.sources)]):
            raise DatasetError(
                f"{path}: found labels made from {' and '.join(map(str, self.sources))}, expected "
                f"{' and '.join(map(str, sources))}; {remedy}"
            )
