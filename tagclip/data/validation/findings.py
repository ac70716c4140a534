"""What the findings of a scan mean, and how to mend them.

Problems forbid to train or evaluate on the dataset. Notes are facts to know, and suspicions that
label values alone cannot prove.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tagclip.data.image_io import DARK_REMEDY
from tagclip.data.validation.label_values import absent_classes, diagnose_labels, suspect_labels
from tagclip.data.validation.scan import EXAMPLES, DatasetScan

__all__ = ["KINDS", "Finding", "list_findings", "shared_findings"]


@dataclass(frozen=True)
class Finding:
    """A problem or a note about one dataset.

    Attributes:
        kind: key of `KINDS`.
        is_problem: False for a note.
        title: what is wrong.
        advice: what to do; "" for nothing.
        count: number of files; 0 if it is about the dataset as a whole.
        examples: up to five files, with what was found in each.
    """

    kind: str
    is_problem: bool
    title: str
    advice: str = ""
    count: int = 0
    examples: tuple[str, ...] = ()


# Whether it is a problem, title and advice of each kind, in the order of the report; "{convert}"
# and "{prepare}" as in `list_findings`.
_SKIP = "go on without them: DATASETS.ON_BAD_SAMPLE skip"
# Where one remedy mends all files, another beside it would lead astray.
_ABOVE = "do as said above of all files"
_ROWS = {
    "refused": (True, "training and evaluation refuse the dataset"),
    "diagnosis": (True, ""),
    "leak": (
        True,
        "images with the same pixels as in",
        "give each of the two an image_list without those of the other",
    ),
    "naming": (
        True,
        "label files named *_labelTrainIds.png, as mmsegmentation's converter does",
        "{convert}",
    ),
    "lonely_image": (True, "images without label file", f"add them, or {_SKIP}{{prepare}}"),
    "lonely_label": (True, "label files without image", f"add them, or {_SKIP}"),
    "image_unreadable": (True, "images that cannot be read", f"replace them, or {_SKIP}"),
    "label_unreadable": (True, "label files that cannot be read", "replace them{prepare}"),
    "label_channels": (
        True,
        "label files whose colours do not say which class is meant",
        "do as said of each file, or {convert}",
    ),
    "moved_words": (
        True,
        "label files that were made with the same words and other ids",
        "segment these images again with this class list, or register them with theirs",
    ),
    "size": (True, "labels of another size than their image", "pair each image with its own label"),
    "size_swapped": (
        True,
        "labels with height and width of their image swapped",
        "write the labels again as the images are shown: turned where there is an EXIF orientation",
    ),
    "unknown": (True, "label files with values outside the vocabulary", "{convert}"),
    "suspicion": (False, ""),
    "other_words": (
        False,
        "label files that were made with other words than the vocabulary",
        "look whether they mean the same; else segment these images again",
    ),
    "exif_unclear": (
        False,
        "images with an EXIF orientation that their size cannot confirm",
        "look whether their labels fit the upright image",
    ),
    "exif_fits": (False, "EXIF-rotated images, whose labels fit the upright image"),
    "same_name": (False, "other images of the same name as in"),
    "duplicate": (False, "images with the same pixels as an earlier one"),
    "all_ignored": (False, "label files without any labelled pixel"),
    "image_alpha": (False, "images with transparency, which is dropped"),
    "image_bands": (False, "TIFF images of more than three bands, whose first three are read"),
    "image_16bit": (False, "images of 16 bits, which are read as 8"),
    "image_dark": (False, "images of 16 bits that are read almost black", DARK_REMEDY),
    "absent": (False, ""),
}
KINDS = {kind: Finding(kind, *row) for kind, row in _ROWS.items()}


def list_findings(
    scan: DatasetScan, convert: str, prepare_command: str = "", verified: bool = False
) -> list[Finding]:
    """Name everything that a scan found, in the order of `KINDS`.

    Args:
        scan: of the whole dataset.
        convert: remedy for labels with wrong values.
        prepare_command: what writes the label files anew; "" if there is no such command.
        verified: the prepare script has made sure which value is which class.
    """
    prepare = f"; or run: {prepare_command}" if prepare_command else ""
    remedies = {"convert": convert, "prepare": prepare}
    findings = [
        _summary(kind, count, scan.examples[kind], remedies) for kind, count in scan.found.items()
    ]
    explained = {"diagnosis": diagnose_labels(scan), "suspicion": suspect_labels(scan, verified)}
    findings += [
        replace(KINDS[kind], title=title, advice=_filled(advice, remedies))
        for kind, pairs in explained.items()
        for title, advice in pairs
    ]
    answered = {"unknown"} if explained["diagnosis"] else set()
    if scan.found["refused"]:
        answered |= {"lonely_image", "lonely_label"}
    findings = [replace(f, advice=_ABOVE) if f.kind in answered else f for f in findings]
    findings += [replace(KINDS["absent"], title=title) for title in absent_classes(scan)]
    copies = [(path, f"as {group[0]}") for group in scan.digests.values() for path in group[1:]]
    if copies:
        findings.append(_summary("duplicate", len(copies), sorted(copies), remedies))
    order = list(KINDS)
    return sorted(findings, key=lambda finding: order.index(finding.kind))


def _filled(advice: str, remedies: Mapping[str, str]) -> str:
    # An advice may hold braces of json.
    for name, text in remedies.items():
        advice = advice.replace(f"{{{name}}}", text)
    return advice


def _summary(
    kind: str, count: int, examples: Iterable[tuple[str, str]], remedies: Mapping[str, str]
) -> Finding:
    texts = tuple(f"{path}: {text}" if text else path for path, text in examples)
    advice = _filled(KINDS[kind].advice, remedies)
    return replace(KINDS[kind], advice=advice, count=count, examples=texts[:EXAMPLES])


def shared_findings(first: DatasetScan, second: DatasetScan) -> list[Finding]:
    """Find images of the second dataset that are also in the first.

    Args:
        first: what is trained on.
        second: what is tested on, or any other dataset.

    Returns:
        A problem for images with equal pixels, a note for equal names with other pixels.
    """
    findings = []
    leaks = [
        (path, f"as {first.digests[digest][0]}")
        for digest, paths in second.digests.items()
        if digest in first.digests
        for path in paths
    ]
    names = [
        (key, "") for key, digest in second.keys.items() if first.keys.get(key, digest) != digest
    ]
    for kind, found in (("leak", leaks), ("same_name", names)):
        if found:
            finding = _summary(kind, len(found), sorted(found), {})
            findings.append(replace(finding, title=f"{finding.title} {first.name}"))
    return findings
