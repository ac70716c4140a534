"""What to do about label values that do not fit a class list.

A remedy names lines of the vocabulary json. What it asks for, no other remedy takes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from tagclip.structures.vocabulary import Vocabulary

__all__ = [
    "background_remedy",
    "is_one_too_many",
    "is_smeared",
    "mask_remedy",
    "smeared_remedy",
    "unlabelled_remedy",
    "value_ranges",
]

# Values that often mean background or unlabelled.
_UNLABELLED = {0, 254, 255}
# The brighter value of masks of two values: white of 8 and of 16 bits.
_WHITE = (255, 65535)
# JPEG, of Pillow's quality of 75 or better, moves the values of a mask of 0 and 255 by less.
_SMEAR = 64
# White moved down with the classes, and the ignore label, are two values.
_FEW_WHITES = 2


def is_smeared(values: Set[int]) -> bool:
    """Whether values are those of a 0/255 mask after lossy compression: both with neighbours."""
    low = {value for value in values if 0 <= value < _SMEAR}
    high = {value for value in values if 255 - _SMEAR < value <= 255}
    enough = len(high) > _FEW_WHITES or values == {0, 1, 254, 255}
    return values == low | high and low > {0} and high > {255} and enough


def smeared_remedy() -> str:
    """What to do about such a mask."""
    return (
        "values near 0 and near 255 are a 0/255 mask compressed as JPEG: its edges are lost; "
        "write PNG files from the source, or, not exactly, by "
        "tagclip labels convert --threshold 128"
    )


def unlabelled_remedy(unknown: Set[int], vocabulary: Vocabulary) -> str:
    """What to do about the values outside a vocabulary if they may mean unlabelled; else ""."""
    # One behind the last class, as CamVid's 11.
    if not unknown or not (unknown <= _UNLABELLED or unknown == {max(vocabulary.by_value) + 1}):
        return ""
    values, several = sorted(unknown), len(unknown) > 1
    return (
        f"if {' and '.join(map(str, values))} mean{'' if several else 's'} unlabelled, say "
        f'"ignore_label": {[*vocabulary.ignored, *values]} in the vocabulary json, or give '
        f"{'each' if several else 'it'} a class there, such as background"
    )


def is_one_too_many(unknown: Set[int], vocabulary: Vocabulary) -> bool:
    """Whether only the value behind the last id is unknown, of ids without gaps."""
    ids = vocabulary.by_value
    return unknown == {max(ids) + 1} and max(ids) - min(ids) + 1 == len(ids)


def background_remedy(value: int, vocabulary: Vocabulary) -> str:
    """What to do where the lowest id is background and the others are one lower than the values."""
    return (
        f'raise all ids in the vocabulary json by one and say "ignore_label": '
        f"{[*vocabulary.ignored, value]} there"
    )


def mask_remedy(values: Set[int], vocabulary: Vocabulary) -> str:
    """What to do about masks of 0 and 255 whose 255 is no class yet; "" for other values."""
    if len(values) != 2 or min(values) != 0 or max(values) not in _WHITE:
        return ""
    white, entries = max(values), vocabulary.classes
    present = [entry for entry in entries if values & set(entry.ids)]
    if any(white in entry.ids for entry in present):
        return ""
    absent = [entry for entry in entries if entry not in present]
    lines, ignored = [], [value for value in vocabulary.ignored if value != white]
    if present == list(entries) and len(entries) > 1:
        return ""
    if 0 in ignored:
        foreground = entries[0]
    elif present and absent:
        foreground = absent[0]
    elif len(entries) == 1:
        foreground = entries[0]
        lines.append('add the class {"id": 0, "name": "background"}')
    else:
        lines.append(f'"ids": {[entries[0].id, 0]} for {entries[0].name!r}')
        foreground = entries[1]
    # Id 0 is the background's.
    others = {value for entry in entries if entry is not foreground for value in entry.ids}
    own = [value for value in foreground.ids if value]
    own = own or [next(value for value in range(1, white) if value not in others | {*ignored})]
    lines.insert(0, f'"ids": {[*own, white]} for {foreground.name!r}')
    if white in vocabulary.ignored:
        taken = others | {0, white, *own}
        ignored = ignored or [next(v for v in (254, *range(253, 0, -1)) if v not in taken)]
        lines.append(f'"ignore_label": {ignored if len(ignored) > 1 else ignored[0]}')
    which = f", one of {len(absent)} absent classes" * (len(absent) > 2)
    return (
        f"{white} looks like the foreground of a 0/{white} mask: if it is {foreground.name!r}"
        f"{which}, say in the vocabulary json {' and '.join(lines)}"
    )


def value_ranges(values: Iterable[int]) -> str:
    """1, 2, 3, 7 as "1..3, 7"; at most six ranges."""
    ranges: list[list[int]] = []
    for value in sorted(values):
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    texts = [f"{low}..{high}" if high > low else f"{low}" for low, high in ranges]
    return ", ".join(texts[:6]) + (f", ... {texts[-1]}" if len(texts) > 6 else "")
