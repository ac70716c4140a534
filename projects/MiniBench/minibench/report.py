"""What a run learned: pictures and one page, written into its folder."""

from __future__ import annotations

from pathlib import Path

from tagclip.projects.minibench.report_figures import draw_per_class_iou, draw_training_curve
from tagclip.projects.minibench.report_gallery import choose_images, draw_gallery
from tagclip.projects.minibench.report_page import metric_rows, render_page
from tagclip.projects.minibench.report_run import Run, load_model, read_run
from tagclip.utils.files import write_atomic
from tagclip.visualization.class_charts import save_chart
from tagclip.visualization.panels import save_png

__all__ = ["metric_rows", "write_report"]


def write_report(folder: Path) -> tuple[Run, list[Path]]:
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
    pictures = {"gallery": save_png(folder / "gallery.png", draw_gallery(images, run.vocabulary))}
    for name, figure in figures.items():
        pictures[name] = save_chart(figure, folder / f"{name}.png")
    page = render_page(run, choice, {name: file.read_bytes() for name, file in pictures.items()})
    return run, [*pictures.values(), write_atomic(folder / "report.html", page)]
