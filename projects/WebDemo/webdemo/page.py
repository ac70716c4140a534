"""The page: what is where, and what calls what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError

from tagclip.modeling.inference.gate import GATE_MODES
from tagclip.predictor import TagCLIPPredictor
from tagclip.projects.webdemo.handlers import Handlers
from tagclip.projects.webdemo.session import Arrivals, Limits, Settings, Uploads, no_upload
from tagclip.projects.webdemo.space import UploadSpace
from tagclip.projects.webdemo.turns import Turns
from tagclip.projects.webdemo.visits import Visits, shown_message
from tagclip.visualization.html_page import render

__all__ = ["build_page"]

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_TITLE = "TagCLIP: any words on any image"
# Puts behind the values of the sliders whether there is a result in the browser.
_WITH_SHOWN = """(...values) =>
    [...values.slice(0, -1), document.querySelector("#result .pictures") !== null]"""


class _Page(gr.Blocks):
    """Says in one line what is wrong with values that did not come from its own widgets."""

    async def preprocess_data(self, block_fn: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, *args, **kwargs)
        except gr.Error:
            raise
        except InvalidPathError as error:
            # Its words are those of a developer, and hold a path of this server.
            raise gr.Error(shown_message(str(no_upload())), print_exception=False) from error
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            text = f"{block_fn.name}: found other values than this page sends ({reason})"
            logger.warning("%s", text)
            raise gr.Error(f"{text}; reload the page", print_exception=False) from error


class _Widgets:
    """Everything on the page, laid out in the current gradio context."""

    def __init__(self, predictor: TagCLIPPredictor, examples: Sequence[tuple[str, str]]) -> None:
        gr.Markdown(f"# {_TITLE}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_id="question"):
                self._lay_out_question(examples)
            with gr.Column(scale=4, min_width=360):
                self._lay_out_answer(predictor)

    def _lay_out_question(self, examples: Sequence[tuple[str, str]]) -> None:
        image, words = examples[0] if examples else (None, "")
        self.image = gr.Image(
            image,
            label="Image",
            type="filepath",
            image_mode=None,
            height=260,
            sources=["upload", "clipboard"],
            elem_id="image",
        )
        self.words = gr.Textbox(
            words,
            label="Words, separated by commas",
            lines=2,
            placeholder="cat, dining table, sky",
            elem_id="words",
        )
        self.context = gr.Textbox(
            "",
            label="Context words (optional)",
            info="They compete for pixels, too; where one wins, the pixel is called other.",
            elem_id="context",
        )
        self.segment = gr.Button("Segment", variant="primary", elem_id="segment")
        self.seen = gr.CheckboxGroup(
            [],
            label="Count as seen",
            info="Ticked by the names of the training classes; change what is wrong.",
            visible=False,
            elem_id="seen",
        )
        self.examples = None
        if examples:
            columns = 2 if all(words for _, words in examples) else 1
            rows = [list(pair[:columns]) for pair in examples]
            inputs = [self.image, self.words][:columns]
            self.examples = gr.Examples(rows, inputs, elem_id="examples")

    def _lay_out_answer(self, predictor: TagCLIPPredictor) -> None:
        start = Settings.from_config(predictor.cfg)
        has_token = predictor.model.trusty_target is not None
        with gr.Row():
            gate = gr.Radio(
                list(GATE_MODES),
                value=start.gate,
                label="Gate",
                info="Which classes the trusty map weights.",
                visible=has_token,
                elem_id="gate",
            )
            bias = _slider("Seen bias", "Taken off the scores of seen classes.", start.seen_bias)
        with gr.Row():
            is_auto = predictor.model.inference_settings.background == "auto"
            also = ", as do pixels that no word fits" if is_auto else ""
            about = f"Lower scores become other{also}."
            threshold = _slider("Background threshold", about, start.background_threshold)
            opacity = _slider("Opacity", "Of the colours.", 0.5)
        self.sliders = [gate, bias, threshold, opacity]
        # What the browser says of itself, see _WITH_SHOWN.
        self.shown = gr.Checkbox(visible=False)
        self.result = gr.HTML(
            render("empty.html.j2", __package__),
            apply_default_css=False,
            js_on_load=(_HERE / "hover.js").read_text(encoding="utf-8"),
            css_template=(_HERE / "result.css").read_text(encoding="utf-8"),
            elem_id="result",
        )
        self.save = gr.Button("Save labels and summary", size="sm", elem_id="save")
        self.files = gr.Files(label="Result", visible=False, interactive=False, elem_id="files")


def build_page(
    predictor: TagCLIPPredictor,
    examples: Sequence[tuple[str, str]] = (),
    limits: Limits | None = None,
    *,
    uploads: Path,
    space: UploadSpace,
    turns: Turns | None = None,
) -> gr.Blocks:
    """Lay out the page and connect it.

    Args:
        predictor: shared by all visitors.
        examples: (image file, words) pairs; the first is there from the start.
        limits: what a visitor may ask for.
        uploads: folder of the files that visitors bring, and of the examples.
        space: for the files of all visitors.
        turns: that the requests take; None makes some.
    """
    limits = limits or Limits()
    with _Page(
        title=_TITLE,
        analytics_enabled=False,
        # Looked for every ten minutes; all are deleted at the end.
        delete_cache=(limits.kept_seconds // 6, limits.kept_seconds),
    ) as page:
        widgets = _Widgets(predictor, examples)
        page.upload_file_set = arrivals = Arrivals()
        page.temp_file_sets.append(arrivals)
        # What gradio has copied for the widgets so far are the examples.
        files = Uploads(uploads, arrivals.times)
        _connect(widgets, Handlers(predictor, limits, files, space), Visits(limits, turns))
    return page


def _connect(on: _Widgets, handlers: Handlers, visits: Visits) -> None:
    # Without gradio's decoding of images: tagclip.data reads the file and says what is wrong.
    raw = {"preprocess": False}
    segment = {
        "fn": visits.attended(handlers.segment, needs_image=False),
        "inputs": [on.image, on.words, on.context, *on.sliders],
        "outputs": [on.seen, on.result, on.files],
        "show_progress_on": on.result,
    } | raw
    gr.on([on.segment.click, on.words.submit, on.context.submit], **segment, api_name="segment")
    if on.examples is not None:
        on.examples.load_input_event.then(**segment, api_visibility="private")
    look = {"show_progress": "hidden", "trigger_mode": "always_last"} | raw
    shown = [on.result, on.files]
    # A program, which moves no sliders, has asked for a result.
    adjust = {"fn": visits.attended(handlers.adjust), "outputs": shown} | look
    gr.on([], inputs=on.sliders, api_name="adjust", **adjust)
    moved = [slider.change for slider in on.sliders]
    inputs = [*on.sliders, on.shown]
    gr.on(moved, inputs=inputs, js=_WITH_SHOWN, api_visibility="private", **adjust)
    on.seen.input(
        visits.attended(handlers.choose_seen),
        [on.seen, *on.sliders],
        shown,
        api_name="choose_seen",
        **look,
    )
    on.save.click(visits.attended(handlers.save), on.sliders[:3], on.files, api_name="save", **raw)


def _slider(label: str, info: str, value: float) -> gr.Slider:
    name = label.lower().replace(" ", "-")
    return gr.Slider(0, 1, value, step=0.005, label=label, info=info, elem_id=name)
