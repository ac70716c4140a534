"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tagclip.projects.minibench.report_run import Run
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.html_page import html_page, html_picture, html_table
from tagclip.visualization.panels import UNLABELLED_NOTE, UNSEEN_NOTE
from tagclip.visualization.segments import marked_names

__all__ = ["metric_rows", "render_page"]

_STYLE = """
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; }
ul.legend span { display: inline-block; width: 1.4rem; height: .9rem; margin-right: .5rem;
  border: 1px solid #000; vertical-align: -.1rem; }
"""
_HATCH = "repeating-linear-gradient(-45deg, #fff 0 4px, #a0a0a0 4px 5px)"
_FACTS = ("setting", "seed", "clip", "clip_sha256", "templates", "trusty_target", "gate",
          "seen_bias", "weights", "git_commit")  # fmt: skip


def metric_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, percent or n/a, number of classes averaged or "") of every metric.

    Args:
        result: ``metrics.json`` of an evaluation.
    """
    defined = [entry for entry in result["classes"] if entry["IoU"] is not None]
    counts = {"mIoU": len(defined), "mACC": len(defined)}
    for part, seen in (("seen", True), ("unseen", False)):
        counts[f"mIoU-{part}"] = sum(entry["seen"] is seen for entry in defined)
    return [
        (name, "n/a" if value is None else f"{value:.2f}", str(counts.get(name, "")))
        for name, value in result["metrics"].items()
    ]


def render_page(run: Run, choice: str, pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        run: what it is about.
        choice: how the images of the gallery were chosen.
        pictures: PNG files ``gallery``, ``per_class_iou`` and ``training_curve``.
    """
    result = run.result
    title = f"TagCLIP on {result['dataset']}, split {result['split'] or 'none'}"
    body = [
        f"<p>Protocol: {escape(str(result['run'].get('protocol')))}.</p>",
        f"<h2>Metrics over {result['images']} images</h2>",
        html_table(("metric", "percent", "classes"), metric_rows(result)),
        "<h2>Gallery</h2>",
        f"<p>{escape(choice)} The trusty map is P(pixel belongs to a seen class).</p>",
        html_picture(pictures["gallery"], "image, ground truth, prediction and trusty map"),
        "<h2>Classes</h2>",
        _legend(run.vocabulary),
        html_picture(pictures["per_class_iou"], "bars of the IoU of every class"),
        "<h2>Training</h2>",
        html_picture(pictures["training_curve"], "losses, learning rate and accuracy by iteration"),
        "<h2>Run</h2>",
        html_table(("", ""), _facts(run), texts=2),
    ]
    return html_page(title, body, _STYLE)


def _facts(run: Run) -> list[tuple[str, str]]:
    info, cfg = run.result["run"], run.cfg
    facts = [
        (key.replace("_", " "), info[key]) for key in _FACTS if info.get(key) not in (None, "")
    ]
    training = f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images"
    return [("training", training), *((key, str(value)) for key, value in facts)]


def _legend(vocabulary: Vocabulary) -> str:
    seen = vocabulary.seen or (True,) * len(vocabulary)
    items = []
    for name, flag, color in zip(marked_names(vocabulary), seen, vocabulary.colors, strict=True):
        text = escape(name) if flag else f"<strong>{escape(name)}</strong>"
        items.append(f'<li><span style="background: rgb{tuple(color.tolist())}"></span>{text}</li>')
    items.append(f'<li><span style="background: {_HATCH}"></span>unlabelled</li>')
    notes = [UNSEEN_NOTE] * (not all(seen)) + [UNLABELLED_NOTE]
    return "\n".join(('<ul class="legend">', *items, "</ul>", f"<p>{'; '.join(notes)}.</p>"))
