"""Every HTML page: names are text on it, whatever they hold, and it needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from detectron2.config import CfgNode
from helpers.html import Page
from helpers.tiny_checkpoint import build, checkpointer
from helpers.tiny_run import changed, own_loggers, write_tiny_dataset
from helpers.toy_dataset import vocabulary_tree, write_json

from tagclip import TagCLIPPredictor, ZeroShotTrainer
from tagclip.analysis.report import write_comparison, write_run
from tagclip.analysis.run_analysis import AnalyzedRun, analyze_run
from tagclip.projects.minibench.report import write_report
from tagclip.projects.webdemo.result import render_result
from tagclip.projects.webdemo.session import Limits, Settings, encode_image
from tagclip.projects.webdemo.space import UploadSpace
from tagclip.visualization.html_page import render

CLASS = """<script>alert('class')</script> & "cat\""""
RUN = """<script>alert('run') & "a\""""
FILE = """<img src=x onerror='file'> & "b\""""


@pytest.fixture(scope="session")
def tiny_vocabulary_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The classes of ``tiny_cfg``, the first with another name."""
    names = [CLASS, "dog", "grass", "sky", "sofa"]
    path = tmp_path_factory.mktemp("vocabulary") / "evil.json"
    return str(write_json(path, vocabulary_tree(names, ["dog", CLASS])))


@pytest.fixture
def run_folder(tiny_cfg: CfgNode, tmp_path: Path) -> Path:
    """OUTPUT_DIR of an evaluated model with saved logits, in a folder named RUN."""
    write_tiny_dataset(tmp_path)
    for file in list(tmp_path.glob("*/val/0.png")):
        file.rename(file.with_name(f"{FILE}.png"))
    folder = tmp_path / RUN
    cfg, model = build(changed(tiny_cfg, "OUTPUT_DIR", str(folder), "TEST.SAVE_LOGITS", True))
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    checkpointer(cfg, model, folder).save("model_final")
    with own_loggers():
        ZeroShotTrainer.test(cfg, model.eval())
    return folder


def analyzed(folder: Path) -> AnalyzedRun:
    cfg = CfgNode.load_cfg((folder / "config.yaml").read_text())
    (metrics,) = folder.glob("inference/*/metrics.json")
    return analyze_run(folder, cfg, json.loads(metrics.read_text()), folder.name)


def minibench_report(folder: Path) -> str:
    return write_report(folder)[1][-1].read_text()


def analysis_report(folder: Path) -> str:
    return write_run(analyzed(folder), folder / "analysis", 3).read_text()


def comparison(folder: Path) -> str:
    runs = [analyzed(folder)] * 2
    return write_comparison(runs, [f"{RUN} differs"], folder / "analysis").read_text()


def web_result(folder: Path) -> str:
    predictor = TagCLIPPredictor.from_checkpoint(folder / "model_final.pth")
    image = folder.parent / "images" / "val" / f"{FILE}.png"
    encoded = encode_image(predictor, image, f"{CLASS}, dog", "", Limits())
    return render_result(encoded, Settings("both", 0.1, 0.0), 0.5)


def segment(handlers: Any, image: dict[str, str], words: str) -> None:
    """As one visitor asks."""
    from gradio import Request

    handlers.segment(Request(session_hash="visitor"), None, image, words, "", "both", 0.1, 0.0, 0.5)


def web_message(folder: Path) -> str:
    gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.handlers import Handlers
    from tagclip.projects.webdemo.session import Uploads

    image = folder / f"{FILE}.png"
    image.write_text("no image")
    predictor = TagCLIPPredictor.from_checkpoint(folder / "model_final.pth")
    with pytest.raises(gradio.Error) as caught:
        handlers = Handlers(predictor, Limits(), Uploads(folder, {}), UploadSpace(1, 1))
        segment(handlers, {"path": str(image)}, "dog")
    return caught.value.message


def web_warning(folder: Path) -> str:
    gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    from tagclip.projects.webdemo.handlers import Handlers
    from tagclip.projects.webdemo.session import Uploads

    shown: list[str] = []
    predictor = TagCLIPPredictor.from_checkpoint(folder / "model_final.pth")
    image = {"path": str(folder.parent / "images" / "val" / "1.png")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradio, "Warning", shown.append)
        handlers = Handlers(predictor, Limits(), Uploads(folder.parent, {}), UploadSpace(1, 1))
        segment(handlers, image, CLASS)
    return shown[0]


@pytest.mark.parametrize(
    ("write", "shown"),
    [
        (minibench_report, [CLASS]),
        (analysis_report, [RUN, CLASS]),
        (comparison, [RUN]),
        (web_result, [CLASS]),
        (web_message, [FILE]),
        (web_warning, [CLASS]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_names_are_text(run_folder: Path, write: Callable[[Path], str], shown: list[str]) -> None:
    html = write(run_folder)
    page = Page(html)
    assert all(any(name in words for words in page.words) for name in shown)
    assert not any(name in html for name in (CLASS, RUN, FILE))
    assert not page.tags & {"b", "i"}


def test_what_a_template_shows_must_be_there() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'metrics' is undefined"):
        render(
            "report.html.j2",
            "tagclip.projects.minibench",
            title="run",
            result={"run": {}, "images": 1},
        )
