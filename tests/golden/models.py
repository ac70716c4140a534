"""This library's model in the sizes of a golden file, with the official weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn

from golden.report import Golden
from tagclip import Vocabulary, load_config, register_zero_shot_sem_seg
from tagclip.checkpoint.conversion.mmseg import Conversion, convert_official
from tagclip.modeling.clip.layouts import describe_misfit

__all__ = ["GivenVectors", "Workspace", "workspace"]

_DATASET = "golden_parity"


class GivenVectors(nn.Module):
    """Stands in for the text bank: the class vectors are inputs of the official model."""

    def __init__(self, names: list[str], vectors: Tensor) -> None:
        super().__init__()
        self.rows, self.vectors = {name: i for i, name in enumerate(names)}, vectors

    def forward(self, vocabulary: Vocabulary) -> Tensor:
        return self.vectors[[self.rows[name] for name in vocabulary.names]]

    def prompt_rows(self, vocabulary: Vocabulary) -> None:
        """Every row is a class."""


class Workspace:
    """Builds configs and models for one golden file.

    Attributes:
        golden: the file.
        official: its TagCLIP, converted.
        zegclip: its ZegCLIP (with TagCLIP's backbone), converted.
        vocabulary: all classes, with their partition.
        seen: the seen classes in the official order.
    """

    def __init__(self, golden: Golden, folder: Path) -> None:
        self.golden, self._folder = golden, folder
        state = golden.tree("state_dict")
        self.official = convert_official(state, "state_dict")
        backbone = {k: v for k, v in state.items() if k.startswith("backbone.")}
        self.zegclip = convert_official(golden.tree("zegclip_state_dict") | backbone, "zegclip")
        ids, names = golden.config("both_class"), golden.config("class_names")
        base = golden.config("base_class")
        self._write_vocabulary([names[i] for i in ids], ids, base)
        self.vocabulary = Vocabulary.from_metadata(_DATASET)
        entries = {entry.id: entry for entry in self.vocabulary.classes}
        self.seen = Vocabulary("seen", tuple(entries[i] for i in base), (True,) * len(base))

    @property
    def letters(self) -> str:
        """``MODEL.TAGCLIP.LAYERS`` of the official model."""
        return self.golden.config("operator").replace("_", "")

    def config(self, state: Mapping[str, Tensor] | None = None, **sections: Any) -> CfgNode:
        """Config in the sizes of the file, dropout off.

        Args:
            state: CLIP's weights under open_clip's names; None takes the official model's.
            sections: values by key, with ``__`` for the dots.
        """
        config = self.golden.config
        options = {
            "MODEL.DEVICE": "cpu",
            "MODEL.PIXEL_MEAN": [0.0, 0.0, 0.0],
            "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
            "MODEL.CLIP.NAME": self._clip_json(state),
            "MODEL.CLIP.PRETRAINED": self._clip_weights(state),
            "MODEL.CLIP.PROMPT.NUM_TOKENS": config("prompts"),
            "MODEL.CLIP.PROMPT.DEPTH": len(self.official.trained["backbone.prompts.tokens"]),
            "MODEL.CLIP.PROMPT.DROPOUT": 0.0,
            "MODEL.TAGCLIP.NUM_HEADS": config("dec_heads"),
            "MODEL.TAGCLIP.LAYERS": self.letters,
            "MODEL.TAGCLIP.DROPOUT": 0.0,
            "MODEL.TAGCLIP.TRUSTY.TARGET": "novel",
            "MODEL.TAGCLIP.SELF_TRAINING.REGION": "novel",
            "DATASETS.ZERO_SHOT.ALLOW_NOVEL_MASKS": True,
            "MODEL.TAGCLIP.TEST.WINDOW": config("crop"),
            "MODEL.TAGCLIP.TEST.STRIDE": config("stride"),
            "MODEL.TAGCLIP.TEST.OUTPUT": "scores",
            "DATASETS.TRAIN": (_DATASET,),
            "DATASETS.TEST": (_DATASET,),
        } | {key.replace("__", "."): value for key, value in sections.items()}
        return load_config("", [part for pair in options.items() for part in pair])

    def model(
        self,
        setting: str = "inductive",
        *,
        token: bool = True,
        zegclip: bool = False,
        mask_weight: float = 20.0,
    ) -> nn.Module:
        """Build the model as a config would and load the converted weights."""
        cfg = self.config(
            DATASETS__ZERO_SHOT__SETTING=setting,
            MODEL__TAGCLIP__TRUSTY__ENABLED=token,
            MODEL__TAGCLIP__LOSS__MASK=mask_weight,
            MODEL__TAGCLIP__LAYERS=self.zegclip.layers if zegclip else self.letters,
        )
        model = build_model(cfg).eval()
        names, vectors = self.vocabulary.names, self.golden.input("text_embedding")
        model.text_bank = GivenVectors(names, vectors)
        if setting == "inductive":
            model.train_vocabulary = self.seen
        load_trained(model, self.zegclip if zegclip else self.official)
        return model

    def _write_vocabulary(self, names: list[str], ids: list[int], base: list[int]) -> None:
        unseen = [name for name, i in zip(names, ids, strict=True) if i not in base]
        tree = {
            "format": 1,
            "name": "golden",
            "classes": [{"id": i, "name": n} for i, n in zip(ids, names, strict=True)],
            "default_split": "golden",
            "splits": {"golden": {"unseen": unseen}},
        }
        path = self._folder / "vocabulary.json"
        path.write_text(json.dumps(tree))
        register_zero_shot_sem_seg(_DATASET, self._folder, self._folder, path)

    def _clip_json(self, state: Mapping[str, Tensor] | None) -> str:
        config = self.golden.config
        state = self.official.clip if state is None else state
        side = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        tree = {
            "embed_dim": config("out_dim"),
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": side * config("patch"),
                "layers": config("layers"),
                "width": config("width"),
                "head_width": config("width") // config("heads"),
                "patch_size": config("patch"),
            },
            "text_cfg": {
                "context_length": config("context"),
                "vocab_size": config("vocab"),
                "width": config("text_width"),
                "heads": config("text_heads"),
                "layers": config("text_layers"),
            },
        }
        path = self._folder / f"clip_{side}.json"
        path.write_text(json.dumps(tree))
        return str(path)

    def _clip_weights(self, state: Mapping[str, Tensor] | None) -> str:
        path = self._folder / ("clip.pt" if state is None else "other_clip.pt")
        if state is not None or not path.is_file():
            torch.save(self.official.clip if state is None else dict(state), path)
        return str(path)


@contextmanager
def workspace(golden: Golden) -> Iterator[Workspace]:
    """Write what a config names into a temporary folder, and remove it in the end."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Workspace(golden, Path(folder))
        finally:
            DatasetCatalog.pop(_DATASET, None)
            MetadataCatalog.pop(_DATASET, None)


def load_trained(model: nn.Module, conversion: Conversion) -> None:
    """Load converted weights; a model without trusty token leaves the token out."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = dict(conversion.trained)
    if model.sem_seg_head.trusty_token is None:
        trained.pop("sem_seg_head.trusty_token", None)
    misfit = describe_misfit(own, trained)
    assert not misfit, misfit
    model.load_state_dict(trained, strict=False)
