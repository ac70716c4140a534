"""The model card: README.md of a folder, with a header that the hub reads."""

from __future__ import annotations

import re
import shlex
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tagclip.modeling.clip.config import HUB
from tagclip.structures.provenance import Provenance
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.text import json_text, markdown_table, one_line

__all__ = ["model_card"]

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&#])")
# Of the numbers of an evaluation, those of the table; the file has all.
_SHOWN = ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU", "pAcc", "trusty-AUROC")
# Metric -> its type in the header.
_HEADER = {"mIoU": "mean_iou", "hIoU": "harmonic_mean_iou"}


def model_card(
    *,
    name: str,
    protocol: str,
    vocabulary: Vocabulary,
    provenance: Provenance,
    clip: dict[str, Any],
    results: list[dict[str, Any]],
    background: str = "",
    license: str = "",
) -> str:
    """Write the card of a model.

    Args:
        name: ``ORGANISATION/NAME``, or the name of the folder.
        protocol: see `Protocol.summary`.
        vocabulary: class list of the training; in the supervised setting all are seen.
        provenance: whose masks trained it.
        clip: ``name``, ``pretrained``, ``sha256`` and ``file`` as in `read_description`.
        results: as `results_of` returns them; without any, the card says so.
        background: as `describe_background` returns it.
        license: identifier of the hub for the trained tensors; "": not known.

    Returns:
        Markdown with a yaml header.
    """
    # See `tagclip.checkpoint.hub`.
    from huggingface_hub import EvalResult, ModelCardData

    pretrained = clip["pretrained"]
    header = ModelCardData(
        library_name="tagclip",
        pipeline_tag="image-segmentation",
        license=license or None,
        base_model=pretrained.removeprefix(HUB) if pretrained.startswith(HUB) else None,
        tags=["tagclip", "clip", "semantic-segmentation", "zero-shot-semantic-segmentation"],
        model_name=name if results else None,
        eval_results=[
            EvalResult(
                task_type="image-segmentation",
                dataset_type=result["dataset"],
                dataset_name=result["dataset"],
                dataset_split=result["split"] or None,
                metric_type=kind,
                metric_name=metric,
                metric_value=round(result["metrics"][metric], 2),
            )
            for result in results
            for metric, kind in _HEADER.items()
            if metric in result["metrics"]
        ]
        or None,
    )
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _escaped
    environment.filters["names"] = lambda names: ", ".join(map(_escaped, names)) or "none"
    flags = list(zip(vocabulary.names, vocabulary.seen_mask, strict=True))
    return environment.get_template("model_card.md.j2").render(
        header=header.to_yaml(),
        name=name,
        python_name=json_text(name, ensure_ascii=False),
        shell_name=shlex.quote(name),
        protocol=protocol,
        provenance=provenance,
        background=background,
        seen=[n for n, is_seen in flags if is_seen],
        unseen=[n for n, is_seen in flags if not is_seen],
        clip=clip,
        clip_terms=_clip_terms(clip),
        license=license,
        results=results,
        table=_table(results),
    )


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def _table(results: list[dict[str, Any]]) -> str:
    metrics = [m for m in _SHOWN if any(m in result["metrics"] for result in results)]
    rows = [
        [
            _escaped(f"{result['dataset']} {result['split']}".strip()),
            *(f"{result['metrics'][m]:.1f}" if m in result["metrics"] else "" for m in metrics),
            f"`{result['file']}`",
        ]
        for result in results
    ]
    return markdown_table(["dataset, split", *metrics, "file"], rows)


def _clip_terms(clip: dict[str, Any]) -> str:
    """What is known of the terms of CLIP's weights; see THIRD_PARTY.md."""
    if clip["pretrained"] == "openai":
        return (
            "OpenAI's CLIP: its repository is under MIT; its model card calls any deployed use "
            "case, commercial or not, out of scope"
        )
    if clip["pretrained"] and not clip["file"]:
        return (
            "each of open_clip's tags and each repository of the hub has a licence of its own, "
            "some of them non-commercial: read the page of this one"
        )
    return "not known"
