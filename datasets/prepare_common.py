"""What the prepare scripts share: converting label files in parallel, checking and recording them.

Raw data stay as they are. Each label file is written whole or not at all, so that an interrupted
run goes on where it stopped. At the end every label file is read back; then the list of images
and a record of the classes (`LabelManifest`) are written beside the folder, without which the
registered dataset refuses the labels. The record also says what the labels are made from: a run
with other sources does not add to them. What is written anew replaces earlier files all at once,
when it has been read back. One process at a time writes to a folder of labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prepare_cli import Options
from prepare_sources import README, LabelSource
from prepare_task import TEMPORARY, Task, check_label_file, compare_label, make_label

from tagclip.data.datasets.builtin import Benchmark, read_benchmarks
from tagclip.data.datasets.manifest import LabelManifest
from tagclip.data.datasets.walk import map_files
from tagclip.errors import DatasetError
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.files import make_folder, write_atomic
from tagclip.utils.run_lock import RunLock

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
        ConfigError: another process writes these labels.
        DatasetError: files are missing or unexpected, or hold unexpected values.
    """
    benchmark = read_benchmarks()[dataset]
    tasks = _build_tasks(benchmark, options, names, images, sources, short_side)
    vocabulary = sources[0].label_map.vocabulary
    origins = [source.origin(options.root) for source in sources]
    record = LabelManifest.of(vocabulary, len(tasks), benchmark.num_images, True, origins)
    _refuse_own_source(vocabulary, tasks)
    if not options.overwrite and _is_done(benchmark, options.root, tasks, record):
        # Not locked: nothing is written, maybe to a disk that cannot be.
        num_new, pixels = 0, _check_all(benchmark, tasks.values(), options)
    else:
        # First: it names what is in the way.
        folder = make_folder(options.root / benchmark.labels)
        with RunLock(folder, "--root"):
            num_new, pixels = _make(benchmark, vocabulary, options, tasks, record)
    _report(benchmark, vocabulary, num_new, pixels)


def _is_done(
    benchmark: Benchmark, root: Path, tasks: Mapping[str, Task], record: LabelManifest
) -> bool:
    """Whether there is nothing to write, and nothing to clean up."""
    manifest_path = root / benchmark.manifest
    known = LabelManifest.read(manifest_path)
    # One of an earlier version stays as it is: nobody has seen what it does not say.
    expected = record if known and known.sources else replace(record, sources=())
    return (
        known == expected
        and _says(root / benchmark.image_list, _list_of(tasks))
        and all(path.exists() for task in tasks.values() for path in task.results)
        and not any(_leftovers(tasks.values(), manifest_path))
    )


def _make(
    benchmark: Benchmark,
    vocabulary: Vocabulary,
    options: Options,
    tasks: Mapping[str, Task],
    record: LabelManifest,
) -> tuple[int, dict[int, int]]:
    """Write labels, list and ``record``; how many labels are new, and pixels by value."""
    manifest_path = options.root / benchmark.manifest
    if not options.overwrite:
        _check_found(benchmark, vocabulary, record, tasks, options)
        if LabelManifest.read(manifest_path) != record:
            replace(record, complete=False).write(manifest_path)
    for path in _leftovers(tasks.values(), manifest_path):
        path.unlink()
    made = [task.stage() if options.overwrite else task for task in tasks.values()]
    try:
        num_new = sum(_run(make_label, made, options, f"{benchmark.name}: write"))
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
    image_list = options.root / benchmark.image_list
    if not _says(image_list, _list_of(tasks)):
        write_atomic(image_list, _list_of(tasks))
    record.write(manifest_path)
    return num_new, pixels


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
    record: LabelManifest,
    tasks: Mapping[str, Task],
    options: Options,
) -> None:
    """Make sure that label files that exist already are what this script would write.

    Those of a run of this script have its record. Those of somebody else are compared with the
    raw labels, and so are those beside the list of a finished run: they may be older than it.
    """
    path, image_list = options.root / benchmark.manifest, options.root / benchmark.image_list
    known, ours = LabelManifest.read(path), set()
    if known:
        known.check_classes(vocabulary, path, "pass --overwrite to write them anew")
        remedy = "run it with the options of before, or pass --overwrite to write them anew"
        known.check_sources(record.sources, path, remedy)
        is_listed = known.sources and image_list.is_file()
        ours = set(image_list.read_text(encoding="utf-8").split("\n")) if is_listed else set(tasks)
    theirs = [task for name, task in tasks.items() if name not in ours and task.output.exists()]
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
        "%s: all labels read back, %d of them new; %.1f %% of the pixels have a class; %s",
        benchmark.name,
        num_new,
        100 * labelled / max(sum(pixels.values()), 1),
        f"{len(absent)} classes have no pixel ({', '.join(absent[:5])})" if absent else "all occur",
    )


def _leftovers(tasks: Iterable[Task], manifest_path: Path) -> Iterator[Path]:
    """Temporary files of a run that was killed, or that is at work."""
    folders = {path.parent for task in tasks for path in task.results}
    hidden = [path for folder in folders for path in folder.glob(".*")]
    for path in [*hidden, *manifest_path.parent.glob(f".{manifest_path.stem}.*")]:
        if path.suffix in TEMPORARY:
            yield path


def _list_of(tasks: Iterable[str]) -> str:
    """Text of the list of images."""
    return "\n".join(tasks) + "\n"


def _says(path: Path, text: str) -> bool:
    """Whether a file is there and has this text."""
    return path.is_file() and path.read_text(encoding="utf-8") == text
