"""What a histogram of label values gives away about how the label files were made."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from tagclip.data.datasets.label_map import LabelMap
from tagclip.data.label_remedies import (
    background_remedy,
    is_one_too_many,
    is_smeared,
    mask_remedy,
    smeared_remedy,
    unlabelled_remedy,
    value_ranges,
)
from tagclip.data.validation.scan import DatasetScan
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import format_names
from tagclip.utils.class_names import name_key

__all__ = ["absent_classes", "diagnose_labels", "suspect_labels"]

_LABEL_MAPS = Path(__file__).parents[1] / "datasets" / "label_maps"
# Colour of unlabelled pixels in VOC's palette.
_VOC_VOID = (224, 224, 192)
_BACKGROUND_NAMES = ("background", "other", "others", "void", "unlabeled", "unlabelled", "unknown")
# From these shares on, a value passes for background or for unlabelled pixels.
_MANY_IMAGES, _MANY_PIXELS = 0.9, 0.3
# With fewer label files or values, absence says nothing.
_FEW_LABELS, _FEW_VALUES = 10, 60
# Unknown values in a smaller share of the files are a matter of these files.
_FEW_FILES = 0.005
# Values in a smaller share of label files than others, and beyond this share of pixels, are rare.
_RARE, _MOST_PIXELS = 0.2, 0.99
_MANY_VALUES = 30
_COLOR_MODES = ("RGB", "RGBA")


def diagnose_labels(scan: DatasetScan) -> list[tuple[str, str]]:
    """Explain values outside the vocabulary, and labels without any class.

    Values of few pixels, as from single bad files, do not change the explanation.

    Returns:
        (what is wrong, what to do); "{convert}" stands for the dataset's own remedy.
    """
    vocabulary, values = scan.vocabulary, scan.pixels.keys()
    ids = vocabulary.by_value.keys()
    if scan.unknown and is_smeared(values):
        return [("masks of 0 and 255 with blurred values", smeared_remedy())]
    if (remedy := mask_remedy(values, vocabulary)) and (
        scan.unknown or not ids & values or len(vocabulary) <= 2 or scan.labels >= _FEW_LABELS
    ):
        return [(_mask_title(scan), remedy)]
    found = []
    if scan.found["unknown"] > _FEW_FILES * scan.labels:
        found.append(_explain(scan, ids))
    if scan.labels and not ids & scan.pixels.keys():
        found.append((f"none of {scan.labels} label files has a pixel of any class", "{convert}"))
    return found


def _mask_title(scan: DatasetScan) -> str:
    vocabulary = scan.vocabulary
    missing = [entry.name for entry in vocabulary.classes if not scan.total(entry.ids)]
    without = f", {format_names(missing)} has no pixel" if len(missing) == 1 else ""
    ignored = scan.total(vocabulary.ignored) / scan.total(scan.pixels)
    share = f", {ignored:.0%} of them are ignored" * bool(ignored)
    return f"all pixels are {min(scan.pixels)} or {max(scan.pixels)}{share}{without}"


def _explain(scan: DatasetScan, ids: set[int]) -> tuple[str, str]:
    vocabulary = scan.vocabulary
    unknown, known = _frequent_unknown(scan), _frequent(scan, ids)
    for raw in _maps_of(vocabulary):
        # The ids of the vocabulary in another order are not raw.
        if raw.class_names.keys() == ids:
            continue
        if unknown | known <= raw.class_names.keys() | raw.ignored:
            return (
                f"raw ids of {raw.name} ({_range(raw.class_names)}) instead of those of "
                f"{vocabulary.name} ({_range(ids)}): the labels are not converted",
                "{convert}",
            )
    if unknown | known <= _palette_grays(vocabulary) | set(vocabulary.ignored):
        return "palette colours were saved as gray: the values are brightnesses", "{convert}"
    highest, lowest = max(ids), min(ids)
    if is_one_too_many(unknown, vocabulary):
        return _explain_one_too_many(lowest, highest, known, scan)
    if remedy := unlabelled_remedy(unknown, vocabulary):
        if unknown == {254} and vocabulary.ignored == (255,):
            title = "254 instead of 255 for unlabelled pixels: 255 was moved down with the classes"
            return title, remedy
        return (
            f"{value_ranges(unknown)} may mean unlabelled, but the ignore label is "
            f"{value_ranges(vocabulary.ignored)}",
            f"{remedy}; else {{convert}}",
        )
    if len(unknown) >= _MANY_VALUES:
        return (
            f"{len(unknown)} values outside the class list: brightnesses of colours, or labels "
            "resized with interpolation",
            "{convert}",
        )
    return "the labels are of another class list", "name their vocabulary, or {convert}"


def _frequent_unknown(scan: DatasetScan) -> set[int]:
    """Unknown values in not much fewer label files than the most frequent of them."""
    most = max(scan.images[value] for value in scan.unknown)
    return {value for value in scan.unknown if scan.images[value] > _RARE * most}


def _frequent(scan: DatasetScan, values: Collection[int]) -> set[int]:
    """The most frequent of some values, which cover 99 % of the pixels of all of them."""
    ranked = sorted(values, key=lambda value: (-scan.pixels[value], value))
    total, covered, frequent = sum(scan.pixels[value] for value in values), 0, set()
    for value in ranked:
        if covered >= _MOST_PIXELS * total:
            break
        covered += scan.pixels[value]
        frequent.add(value)
    return frequent


def _explain_one_too_many(
    lowest: int, highest: int, known: set[int], scan: DatasetScan
) -> tuple[str, str]:
    vocabulary = scan.vocabulary
    shift = f"value {lowest} becomes ignore, the others move down by one"
    if lowest not in known:
        return (
            f"shifted by one: the ids are {lowest + 1}..{highest + 1} instead of "
            f"{lowest}..{highest}",
            "raise all ids in the vocabulary json by one, or subtract one from all label values; "
            "{convert}",
        )
    others = max((scan.pixels[value] for value in known - {lowest}), default=0)
    if scan.pixels[lowest] >= 2 * others:
        return (
            f"background left in: {lowest} dominates and {highest + 1} is one id too many",
            f"{{convert}} ({shift}), or {background_remedy(lowest, vocabulary)}",
        )
    return (
        f"one id too many: {lowest}..{highest + 1} instead of {lowest}..{highest}; the last is "
        "unlabelled, background was left in, or it is another class list",
        f"{unlabelled_remedy({highest + 1}, vocabulary)}; if {lowest} is background, "
        f"{background_remedy(lowest, vocabulary)}; else {{convert}}",
    )


def _range(ids: Collection[int]) -> str:
    return f"{min(ids)}..{max(ids)}"


def _maps_of(vocabulary: Vocabulary) -> Iterator[LabelMap]:
    """Known encodings of the same classes, other than the vocabulary's own."""
    names = {name_key(name) for name in vocabulary.names}
    own = {entry.id: name_key(entry.name) for entry in vocabulary.classes}
    for path in sorted(_LABEL_MAPS.glob("*.json")):
        label_map = LabelMap.read(path.stem, vocabulary)
        classes = {value: name_key(name) for value, name in label_map.class_names.items()}
        if set(classes.values()) == names and classes != own:
            yield label_map


def _palette_grays(vocabulary: Vocabulary) -> set[int]:
    """Brightness (ITU-R 601) of the vocabulary's colours and of VOC's palette."""
    colors = [tuple(map(int, color)) for color in vocabulary.colors]
    colors += [_voc_color(number) for number in range(len(vocabulary) + 1)] + [_VOC_VOID]
    # Pillow and OpenCV round differently.
    pillow = {(r * 19595 + g * 38470 + b * 7471 + 32768) >> 16 for r, g, b in colors}
    opencv = {(r * 4899 + g * 9617 + b * 1868 + 8192) >> 14 for r, g, b in colors}
    return pillow | opencv


def _voc_color(number: int) -> tuple[int, int, int]:
    """Colour of a number below 2**24 in PASCAL VOC's map: low bits become high colour bits.

    Bits 3j, 3j+1 and 3j+2 of the number are bit 7-j of red, green and blue.
    """
    return tuple(
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for channel in range(3)
    )


def suspect_labels(scan: DatasetScan, verified: bool) -> list[tuple[str, str]]:
    """Name what may be wrong although all values are in the vocabulary.

    Args:
        scan: of the whole dataset.
        verified: somebody has made sure which value is which class.

    Returns:
        As `diagnose_labels`.
    """
    found = list(_suspect_modes(scan))
    if scan.labels >= _FEW_LABELS and not scan.unknown:
        found += _suspect_ends(scan)
    if not scan.unknown and not verified:
        found += _suspect_order(scan)
    return found


def _suspect_modes(scan: DatasetScan) -> Iterator[tuple[str, str]]:
    """Programs write colour images without colours, such as empty masks, as gray ones."""
    modes = scan.modes["label"]
    colored = sum(modes[mode] for mode in _COLOR_MODES)
    gray = sum(modes[mode] for mode in ("1", "L"))
    if not scan.vocabulary.labels and colored and gray:
        yield (
            f"{colored} label files are colours, {gray} are gray values, which are read as ids",
            'if their gray is a colour, too, say "labels": "colors" in the vocabulary json',
        )


def _suspect_ends(scan: DatasetScan) -> Iterator[tuple[str, str]]:
    vocabulary = scan.vocabulary
    names = {entry.id: entry.name for entry in vocabulary.classes}
    lowest, highest = min(names), max(names)
    names_color = all(entry.color for entry in vocabulary.classes)
    total = sum(scan.pixels.values())
    ignored = scan.total(vocabulary.ignored) / total
    absent = sorted(entry.id for entry in vocabulary.classes if not scan.total(entry.ids))
    if (
        scan.images[lowest] >= _MANY_IMAGES * scan.labels
        and scan.pixels[lowest] >= _MANY_PIXELS * total
        and not ignored
        and name_key(names[lowest]) not in _BACKGROUND_NAMES
        # A colour is no number that somebody has left out.
        and not (names_color and scan.modes["label"].keys() <= set(_COLOR_MODES))
    ):
        yield (
            f"{lowest} ({names[lowest]!r}) is in {scan.images[lowest]} of {scan.labels} label "
            f"files and has {scan.pixels[lowest] / total:.0%} of all pixels, the ignore label "
            f"{value_ranges(vocabulary.ignored)} has none: {lowest} may mean background or "
            "unlabelled",
            "look at the contact sheet; {convert}",
        )
    for end, cause in ((lowest, "taken as unlabelled"), (highest, "moved down by one")):
        if absent == [end] and len(names) > 2 and ignored >= _MANY_PIXELS:
            yield (
                f"only {end} ({names[end]!r}) has no pixel and {ignored:.0%} of all pixels are "
                f"ignored: ids may be shifted by one, a class {cause}",
                "look at the contact sheet; {convert}",
            )


def _suspect_order(scan: DatasetScan) -> Iterator[tuple[str, str]]:
    ids = scan.vocabulary.by_value.keys()
    values = scan.pixels.keys() & ids
    for label_map in _maps_of(scan.vocabulary):
        if label_map.class_names.keys() == ids:
            yield (
                f"the values may also be those of {label_map.name}: numbers cannot tell the order",
                "compare names and pictures on the contact sheet; if they do not fit, {convert}",
            )
        elif len(values) >= _FEW_VALUES and not values & label_map.ignored:
            holes = ", ".join(map(str, sorted(label_map.ignored & ids)))
            if holes:
                yield (
                    f"no pixel has the values {holes}, which {label_map.name} leaves out: the ids "
                    "may be raw",
                    "look at the contact sheet; {convert}",
                )


def absent_classes(scan: DatasetScan) -> list[str]:
    """Say which classes have no pixel; nothing if none has one."""
    vocabulary = scan.vocabulary
    absent = [entry.name for entry in vocabulary.classes if not scan.total(entry.ids)]
    if not absent or len(absent) == len(vocabulary):
        return []
    found = [f"{len(absent)} of {len(vocabulary)} classes have no pixel: {format_names(absent)}"]
    unseen = [] if vocabulary.seen is None else vocabulary.unseen_names
    if unseen and set(unseen) <= set(absent):
        found.append(
            f"no pixel of the {len(unseen)} unseen classes: enough for inductive training, but "
            "evaluation cannot report them"
        )
    return found
