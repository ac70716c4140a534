"""What happens when a visitor does something; all state is in the arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from tagclip.errors import ConfigError, DatasetError, VocabularyError
from tagclip.predictor import TagCLIPPredictor
from tagclip.projects.webdemo.result import render_result, write_result
from tagclip.projects.webdemo.session import (
    EncodedImage,
    Limits,
    Settings,
    Uploads,
    encode_image,
)
from tagclip.projects.webdemo.space import FULL, UploadSpace
from tagclip.projects.webdemo.visits import address_of, shown_errors, shown_message
from tagclip.structures.vocabulary_class import format_names
from tagclip.utils.files import temporary_folder
from tagclip.utils.text import listed

__all__ = ["Handlers"]


class Handlers:
    """The functions behind the page.

    ``encoded`` is the visitor's image after its forward pass, None before the first; ``gate``,
    ``seen_bias`` and ``background_threshold`` are those of `Settings`, ``opacity`` is that of the
    colours, 0 to 1. The names of arguments are those of the page's API.
    """

    def __init__(
        self,
        predictor: TagCLIPPredictor,
        limits: Limits,
        uploads: Uploads,
        space: UploadSpace,
    ) -> None:
        """Keep the model that all visitors share.

        Args:
            predictor: the model.
            limits: what a visitor may ask for.
            uploads: the only files that are opened.
            space: for the files of all visitors.
        """
        self.predictor, self.limits, self.uploads = predictor, limits, uploads
        self.space = space

    def segment(
        self,
        request: gr.Request,
        encoded: EncodedImage | None,
        image: dict[str, Any] | None,
        words: str,
        context: str,
        gate: str,
        seen_bias: float,
        background_threshold: float,
        opacity: float,
    ) -> tuple[Any, ...]:
        """Run the model; return its logits, the words to choose among, and the result.

        A word that was asked before stays seen or unseen as the visitor left it.
        """
        with shown_errors():
            # Before the forward pass.
            _check_sliders(gate, seen_bias, background_threshold, opacity)
            words, context = _text("words", words), _text("context", context)
            path = image.get("path") if isinstance(image, dict) else image
            path = self.uploads.find(path, request.session_hash) if image else None
            found = encode_image(self.predictor, path, words, context, self.limits)
        names = found.vocabulary.names
        if encoded is not None:
            known = dict(zip(encoded.vocabulary.names, encoded.vocabulary.seen, strict=True))
            pairs = zip(names, found.vocabulary.seen, strict=True)
            found = found.with_seen([known.get(name, seen) for name, seen in pairs])
        settings = self.predictor.model.inference_settings
        is_open = background_threshold or settings.may_be_other
        if len(names) == 1 and not found.context and not is_open:
            text = f"The only word, {names[0]}, gets every pixel; write context words or raise"
            gr.Warning(shown_message(f"{text} the background threshold"))
        seen = [name for name, flag in zip(names, found.vocabulary.seen, strict=True) if flag]
        boxes = gr.update(choices=names, value=seen, visible=True)
        return (
            found, boxes, *self.adjust(found, gate, seen_bias, background_threshold, opacity),
        )  # fmt: skip

    def choose_seen(
        self,
        encoded: EncodedImage | None,
        seen: Sequence[str],
        gate: str,
        seen_bias: float,
        background_threshold: float,
        opacity: float,
    ) -> tuple[Any, ...]:
        """Call these words seen and the others unseen."""
        with shown_errors():
            encoded = _asked_before(encoded)
            if not isinstance(seen, (list, tuple)) or not all(isinstance(n, str) for n in seen):
                raise VocabularyError(f"seen: found {seen!r:.80}, expected a list of words")
            chosen, names = set(seen), encoded.vocabulary.names
            if unknown := [f"{name!r:.80}" for name in sorted(chosen.difference(names))]:
                raise VocabularyError(
                    f"seen: found {listed(unknown, 5)}, expected words of the image: "
                    f"{format_names(names)}"
                )
        encoded = encoded.with_seen([name in chosen for name in names])
        return encoded, *self.adjust(encoded, gate, seen_bias, background_threshold, opacity)

    def adjust(
        self,
        encoded: EncodedImage | None,
        gate: str,
        seen_bias: float,
        background_threshold: float,
        opacity: float,
        shown: bool = True,
    ) -> tuple[Any, Any]:
        """Draw the result anew; files that were written before are out of date.

        Sliders may be moved before there is one. Whether one is ``shown`` the page alone knows: a
        server that was started anew has none either.
        """
        if encoded is None and not shown:
            return gr.skip(), gr.skip()
        with shown_errors():
            encoded = _asked_before(encoded)
            settings = _check_sliders(gate, seen_bias, background_threshold, opacity)
            result = render_result(encoded, settings, opacity)
        return result, gr.update(value=None, visible=False)

    def save(
        self,
        request: gr.Request,
        encoded: EncodedImage | None,
        gate: str,
        seen_bias: float,
        background_threshold: float,
    ) -> dict[str, Any]:
        """Write labels and json where gradio hands them out, in the room of the visitor."""
        with shown_errors():
            encoded = _asked_before(encoded)
            settings, address = Settings(gate, seen_bias, background_threshold), address_of(request)
            try:
                # Within the folder that goes with the next server where this one is killed.
                with temporary_folder(parent=self.uploads.folder) as folder:
                    files = write_result(encoded, settings, folder)
                    nbytes = sum(max(file.stat().st_size, self.space.least) for file in files)
                    if text := self.space.take(address, nbytes):
                        raise DatasetError(f"result: {text}")
                    kept: list[str] = []
                    try:
                        # Under the name that gradio would copy each to, and then does not.
                        cache = str(self.uploads.folder)
                        kept += [save_file_to_cache(file, cache) for file in files]
                    finally:
                        self.space.arrived(address, nbytes, kept)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.space.give_room(address)
                raise DatasetError(
                    "result: found no room on this server's disk, expected some; try again later"
                ) from error
            return gr.update(value=kept, visible=True)


def _asked_before(encoded: EncodedImage | None) -> EncodedImage:
    """Refuse a look at what the session has not asked for, or not this server."""
    if encoded is None:
        raise DatasetError(
            "result: found none, expected one; press Segment first, or, if the page's server has "
            "been started anew, reload the page and bring the picture again"
        )
    return encoded


def _check_sliders(
    gate: str, seen_bias: float, background_threshold: float, opacity: float
) -> Settings:
    """A request may hold anything; the opacity, which is no config key, is checked here."""
    is_number = isinstance(opacity, (int, float)) and not isinstance(opacity, bool)
    if not is_number or not 0 <= opacity <= 1:
        raise ConfigError(f"opacity: found {opacity!r:.80}, expected a number from 0 to 1")
    return Settings(gate, seen_bias, background_threshold)


def _text(name: str, value: str | None) -> str:
    if value is not None and not isinstance(value, str):
        raise VocabularyError(
            f"{name}: found {value!r:.80}, expected a text; separate words by commas"
        )
    return value or ""
