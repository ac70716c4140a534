"""What a run learned: pictures and one page, written into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagclip.evaluation.results import absent_note, split_metrics
from tagclip.projects.minibench.report_figures import draw_per_class_iou, draw_training_curve
from tagclip.projects.minibench.report_gallery import choose_images, draw_gallery
from tagclip.projects.minibench.report_run import TrainedRun, load_model, read_run
from tagclip.utils.files import files_atomic, remove_leftovers, write_atomic
from tagclip.visualization.class_charts import save_chart
from tagclip.visualization.html_page import render
from tagclip.visualization.panels import HATCHED_NOTE, legend_notes, save_png
from tagclip.visualization.segments import legend_names

__all__ = ["metric_rows", "render_page", "write_report"]

_FACTS = ("setting", "seed", "clip", "clip_sha256", "templates", "trusty_target", "gate",
          "seen_bias", "weights", "git_commit")  # fmt: skip


def write_report(folder: Path) -> tuple[TrainedRun, list[Path]]:
    """Write the pictures and ``report.html``.

    Args:
        folder: ``OUTPUT_DIR`` of a trained and evaluated run.

    Returns:
        The run and the files written, the page last.

    Raises:
        TagCLIPError: the folder holds no evaluated run, or its parts do not belong together.
    """
    run = read_run(folder)
    images, choice = choose_images(run, load_model(run))
    figures = {
        "per_class_iou": draw_per_class_iou(
            [entry["IoU"] for entry in run.result["classes"]], run.vocabulary
        ),
        "training_curve": draw_training_curve(run.curve),
    }
    gallery = draw_gallery(images, run.vocabulary)
    remove_leftovers(folder, "files")
    # All or none: the page shows the same pictures.
    with files_atomic(folder) as waiting:
        pictures = {"gallery": save_png(waiting / "gallery.png", gallery)}
        for name, figure in figures.items():
            pictures[name] = save_chart(figure, waiting / f"{name}.png")
        content = {name: file.read_bytes() for name, file in pictures.items()}
        page = write_atomic(waiting / "report.html", render_page(run, choice, content))
    return run, [folder / file.name for file in (*pictures.values(), page)]


def metric_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, percent or n/a, number of classes averaged or "") of every metric.

    Args:
        result: ``metrics.json`` of an evaluation.
    """
    counts = result["classes_averaged"]
    counts = counts | {"mACC": counts["mIoU"]} | split_metrics(result, "classes_averaged_by_split")
    values = result["metrics"] | split_metrics(result)
    return [
        (name, "n/a" if value is None else f"{value:.2f}", str(counts.get(name, "")))
        for name, value in values.items()
    ]


def render_page(run: TrainedRun, choice: str, pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        run: what it is about.
        choice: how the images of the gallery were chosen.
        pictures: PNG files ``gallery``, ``per_class_iou`` and ``training_curve``.
    """
    vocabulary, result = run.vocabulary, run.result
    seen = vocabulary.seen or (True,) * len(vocabulary)
    colors = vocabulary.colors.tolist()
    return render(
        "report.html.j2",
        __package__,
        title=f"TagCLIP on {result['dataset']}, split {result['split'] or 'none'}",
        result=result,
        metrics=metric_rows(result),
        absent_note=absent_note(result["metrics"]),
        choice=choice,
        classes=list(zip(legend_names(vocabulary), colors, seen, strict=True)),
        notes="; ".join([*legend_notes(vocabulary), HATCHED_NOTE]),
        facts=_facts(run),
        pictures=pictures,
    )


def _facts(run: TrainedRun) -> list[tuple[str, str]]:
    info, cfg = run.result["run"], run.cfg
    facts = [
        (key.replace("_", " "), info[key]) for key in _FACTS if info.get(key) not in (None, "")
    ]
    training = f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images"
    return [("training", training), *((key, str(value)) for key, value in facts)]
