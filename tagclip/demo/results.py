"""What a demo keeps of a prediction besides its picture: labels and an entry of the json."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tagclip.data.label_image import label_image
from tagclip.data.label_notes import words_in
from tagclip.errors import ConfigError, DatasetError
from tagclip.evaluation.coco_json import annotations_of, categories_of
from tagclip.structures.vocabulary import Vocabulary
from tagclip.visualization.panels import save_png
from tagclip.visualization.prediction_page import summarize_prediction

__all__ = ["ResultKeeper", "save_output"]


class ResultKeeper:
    """Writes the labels of an image or a frame and returns its entry, one call each."""

    def __init__(self, vocabulary: Vocabulary, has_json: bool) -> None:
        """Keep what is the same for all.

        Args:
            vocabulary: classes of the predictions.
            has_json: whether anybody reads the entries.
        """
        self._vocabulary, self._has_json = vocabulary, has_json
        self._categories = categories_of(vocabulary)

    def __call__(
        self, prediction: dict[str, Any], labels: Path | None, note: str = ""
    ) -> dict[str, Any]:
        """Write the labels and return the entry without what it says about the input.

        Args:
            prediction: of a `TagCLIPPredictor`.
            labels: their file; None writes none.
            note: see `save_output`.

        Returns:
            See `tagclip.demo.result_json`; empty without a json.

        Raises:
            ConfigError: the labels cannot be written.
            DatasetError: their name is too long.
        """
        indices, vocabulary = prediction["sem_seg_labels"].numpy(), self._vocabulary
        if labels is not None:
            picture = label_image(indices, vocabulary)
            save_output(labels, picture, note, words=words_in(indices, vocabulary))
        if not self._has_json:
            return {}
        return {
            "annotations": annotations_of(indices, prediction, vocabulary),
            "categories": self._categories,
            **({} if labels is None else {"labels": str(labels)}),
            "ignore_label": vocabulary.ignore_label,
            **summarize_prediction(prediction, vocabulary),
        }


def save_output(
    path: Path,
    picture: Image.Image | np.ndarray,
    note: str = "",
    fast: bool = False,
    words: Mapping[int, str] | None = None,
) -> None:
    """Write a PNG of ``--output``.

    Args:
        path: of the file.
        picture, fast, words: see `save_png`.
        note: what another run knows a finished file by; empty: it makes all again.

    Raises:
        ConfigError: the file cannot be written.
        DatasetError: its name is too long.
    """
    try:
        save_png(path, picture, note, fast, words)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            # Of this image alone, and no other folder helps.
            raise DatasetError(
                f"--output {path}: cannot be written ({error.strerror}), expected a name of at "
                "most 255 bytes; shorten the name of the image"
            ) from error
        raise ConfigError(
            f"--output {path}: cannot be written ({error.strerror}); free space or choose another "
            "folder, then start again" + ": finished pictures stay" * bool(note)
        ) from error
