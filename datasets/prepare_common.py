"""What the prepare scripts share: converting label files in parallel, checking and recording them.

Raw data stay as they are. Each label file is written whole or not at all, so that an interrupted
run goes on where it stopped. At the end every label file is read back; then the list of images
and a record of the classes (`LabelManifest`) are written beside the folder, without which the
registered dataset refuses the labels. What is written anew replaces earlier files all at once,
when it has been read back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prepare_cli import Options
from prepare_sources import README, LabelSource
from prepare_task import TEMPORARY, Task, check_label_file, compare_label, make_label

from tagclip.data.datasets.builtin import Benchmark, read_benchmarks
from tagclip.data.datasets.manifest import LabelManifest
from tagclip.data.datasets.walk import map_files
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import write_atomic

__all__ = ["prepare"]

logger = logging.getLogger("prepare")


def prepare(
    dataset: str,
    options: Options,
    names: Collection[str],
    images: Mapping[str, Path],
    sources: Sequence[LabelSource],
    short_side: int = 0,
) -> None:
    """Make, check and record the labels of one dataset.

    Args:
        dataset: its name in `benchmarks.json`, which says where the labels go.
        options: command line.
        names: the images that make up the dataset.
        images: image file by name.
        sources: raw labels; the first one that has an image's label gives it.
        short_side: copies of larger images are made with this short side in pixels (bilinear;
            nearest for labels) in the benchmark's image folder; 0 uses the images as they are.

    Raises:
        DatasetError: files are missing or unexpected, or hold unexpected values.
    """
    benchmark = read_benchmarks()[dataset]
    tasks = _build_tasks(benchmark, options, names, images, sources, short_side)
    vocabulary = sources[0].label_map.vocabulary
    record = partial(LabelManifest.of, vocabulary, len(tasks), benchmark.num_images)
    manifest_path = options.root / benchmark.manifest
    _refuse_own_source(vocabulary, tasks)
    if not options.overwrite:
        _check_found(benchmark, vocabulary, manifest_path, tasks, options)
        if LabelManifest.read(manifest_path) != record(complete=True):
            record(complete=False).write(manifest_path)
    _remove_leftovers(tasks.values(), manifest_path)
    made = [task.stage() if options.overwrite else task for task in tasks.values()]
    try:
        num_new = sum(_run(make_label, made, options, f"{dataset}: write"))
        pixels = _check_all(benchmark, made, options)
        if options.overwrite:
            # First: labels of two kinds that a kill leaves from here on have no record.
            manifest_path.unlink(missing_ok=True)
            for task in made:
                task.take_places()
    except BaseException:
        for task in made:
            task.drop()
        raise
    _report(benchmark, vocabulary, num_new, pixels)
    _write_if_new(options.root / benchmark.image_list, "\n".join(tasks) + "\n")
    record(complete=True).write(manifest_path)


def _refuse_own_source(vocabulary: Vocabulary, tasks: Mapping[str, Task]) -> None:
    """Refuse to convert label files to themselves."""
    in_place = [task for task in tasks.values() if task.is_in_place]
    if in_place and not in_place[0].origin.link:
        raise DatasetError(
            f"{in_place[0].source} has other ids than {vocabulary.name}, and a file cannot be "
            "converted to itself; move its folder away and name it with --converted"
        )


def _check_found(
    benchmark: Benchmark,
    vocabulary: Vocabulary,
    manifest_path: Path,
    tasks: Mapping[str, Task],
    options: Options,
) -> None:
    """Make sure that label files that exist already are what this script would write.

    Those of a run of this script have its record. Those of somebody else are compared with the
    raw labels.
    """
    known = LabelManifest.read(manifest_path)
    if known:
        known.check_classes(vocabulary, manifest_path, "pass --overwrite to write them anew")
    else:
        theirs = [task for task in tasks.values() if task.output.exists()]
        _run(compare_label, theirs, options, f"{benchmark.name}: compare labels found")


def _build_tasks(
    benchmark: Benchmark,
    options: Options,
    names: Collection[str],
    images: Mapping[str, Path],
    sources: Sequence[LabelSource],
    short_side: int,
) -> dict[str, Task]:
    """Tasks by image name, sorted; refuses what is missing unless it is allowed to be."""
    labels = {name: source for source in reversed(sources) for name in source.files}
    found = sorted(name for name in names if name in images and name in labels)
    _refuse_missing(benchmark, options, names, images, "image")
    _refuse_missing(benchmark, options, names, labels, "label")
    if len(found) != benchmark.num_images:
        message = f"{benchmark.name}: found {len(found)} images with labels, expected "
        message += f"{benchmark.num_images}"
        if not found:
            raise DatasetError(f"{message}; {README}, or name other datasets with --only")
        if not options.allow_missing:
            raise DatasetError(
                f"{message}; {README}, or pass --allow-missing to prepare what is there"
            )
        logger.warning("%s", message)
    tasks = {}
    for name in found:
        output = options.root / benchmark.labels / f"{name}.{benchmark.label_ext}"
        image, image_source = images[name], None
        if short_side:
            image_source, image = image, options.root / benchmark.images / f"{name}.jpg"
        origin = labels[name]
        tasks[name] = Task(origin.files[name], output, image, origin, image_source, short_side)
    return tasks


def _refuse_missing(
    benchmark: Benchmark,
    options: Options,
    names: Collection[str],
    files: Collection[str],
    what: str,
) -> None:
    missing = sorted(name for name in names if name not in files)
    if not missing:
        return
    message = (
        f"{benchmark.name}: {len(missing)} of {len(names)} images have no {what} file, such as "
        f"{', '.join(missing[:5])}"
    )
    if not options.allow_missing:
        raise DatasetError(f"{message}; {README}, or pass --allow-missing to leave them out")
    logger.warning("%s; they are left out", message)


def _run(
    function: Callable[[Task], object], tasks: Iterable[Task], options: Options, title: str
) -> list:
    tasks = list(tasks)
    return list(map_files(function, tasks, title, options.workers)) if tasks else []


def _check_all(benchmark: Benchmark, tasks: Iterable[Task], options: Options) -> dict[int, int]:
    """Read every label back; pixels by value."""
    total: dict[int, int] = {}
    for counts in _run(check_label_file, tasks, options, f"{benchmark.name}: check"):
        for value, count in counts.items():
            total[value] = total.get(value, 0) + count
    return total


def _report(
    benchmark: Benchmark, vocabulary: Vocabulary, num_new: int, pixels: Mapping[int, int]
) -> None:
    labelled = sum(n for value, n in pixels.items() if value != vocabulary.ignore_label)
    absent = [entry.name for entry in vocabulary.classes if entry.id not in pixels]
    logger.info(
        "%s: all labels checked, %d of them new; %.1f %% of the pixels have a class; %s",
        benchmark.name,
        num_new,
        100 * labelled / max(sum(pixels.values()), 1),
        f"{len(absent)} classes have no pixel ({', '.join(absent[:5])})" if absent else "all occur",
    )


def _remove_leftovers(tasks: Iterable[Task], manifest_path: Path) -> None:
    """Remove temporary files of a run that was killed."""
    folders = {path.parent for task in tasks for path in task.results}
    hidden = [path for folder in folders for path in folder.glob(".*")]
    for path in [*hidden, *manifest_path.parent.glob(f".{manifest_path.stem}.*")]:
        if path.suffix in TEMPORARY:
            path.unlink()


def _write_if_new(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)
