"""What is measured: a model with random weights, an image, a batch of training labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tagclip.config.loading import load_config
from tagclip.data.datasets.changed_copies import write_vocabulary
from tagclip.modeling.inference.fusion import ScoreFusion
from tagclip.modeling.inference.windows import ViewLogits
from tagclip.modeling.losses.seg_loss import SegTargets
from tagclip.structures.vocabulary import Vocabulary
from tagclip.utils.text import json_text

__all__ = ["FULL", "QUICK", "Scale", "Workload", "rectangles"]

_TINY_CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}


@dataclass(frozen=True)
class Scale:
    """Sizes of a measurement; images and crops in pixels, (height, width).

    By default those of COCO-Stuff 164k on ViT-B/16; ADE20K-Full has 847 classes.
    """

    clip: str = "ViT-B-16-quickgelu"
    prompts: int = 100
    classes: int = 171
    seen: int = 156
    crop: int = 512
    stride: int = 426
    photo: tuple[int, int] = (480, 640)
    large_photo: tuple[int, int] = (3000, 4000)
    large_classes: int = 847
    mask: tuple[int, int] = (1024, 2048)
    samples: tuple[tuple[int, int], ...] = ((375, 500), (1024, 2048))
    templates: str = "zegclip15"
    class_steps: tuple[int, ...] = (20, 60, 171, 500, 1500, 5000)
    released_classes: int = 500
    side_steps: tuple[int, ...] = (512, 1024, 2048, 4096)
    released_side: int = 1024
    bulk_images: int = 20_000
    prompt_steps: tuple[int, ...] = (0, 50, 100, 200, 300, 400)


FULL = Scale()
# Everything runs, no number means anything.
QUICK = Scale(
    clip="",
    prompts=3,
    classes=7,
    seen=5,
    crop=64,
    stride=48,
    photo=(60, 80),
    large_photo=(90, 120),
    large_classes=9,
    mask=(64, 96),
    samples=((60, 80),),
    templates="single",
    class_steps=(4, 8),
    released_classes=4,
    side_steps=(64, 96),
    released_side=64,
    bulk_images=80,
    prompt_steps=(0, 2),
)


class RandomVectors(nn.Module):
    """In place of a `TextBank`: random unit vectors for the names of `Workload.vocabulary`."""

    def __init__(self, dim: int, device: torch.device, most: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        vectors = F.normalize(torch.randn(most, dim, generator=generator), dim=1)
        self.register_buffer("vectors", vectors.to(device), persistent=False)

    def forward(self, vocabulary: Vocabulary) -> Tensor:
        return self.vectors[[int(name.split()[-1]) for name in vocabulary.names]]

    class_vectors = forward

    def prompt_rows(self, vocabulary: Vocabulary) -> None:
        return None

    def with_part(
        self, vocabulary: Vocabulary, known: Vocabulary, part: Tensor
    ) -> tuple[Tensor, None]:
        return torch.cat([self(vocabulary), self(known)[part]]), None

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        return vocabulary.fingerprint


class Workload:
    """A model and its inputs; everything random is the same in every run.

    Attributes:
        scale: its sizes.
        device: ``cpu`` or ``cuda``.
        dataset: registered name of the dataset of one image.
        image: JPEG of the size ``scale.photo``.
        cfg: its config.
        weights: checkpoint of a trained model, for what only such a one shows; "" is none.
        base: another checkout, beside which the start of a process is timed; "" is none.
    """

    weights: str = ""
    base: str = ""

    def __init__(self, scale: Scale, device: str, folder: Path, *options: Any) -> None:
        """Write the dataset of one image into a folder and prepare the config.

        Args:
            scale: sizes.
            device: ``cpu`` or ``cuda``.
            folder: empty, of its own.
            options: config keys and values that go before the others.
        """
        self.scale, self.device, self._folder = scale, device, folder
        # Names are registered for good: another folder needs another one.
        self.dataset = f"benchmark_{'_'.join(folder.parts[-2:])}"
        self.image = str(folder / "images" / "photo.jpg")
        self._write_dataset()
        self.cfg = self._config(options)

    @cached_property
    def model(self) -> nn.Module:
        """With random weights and class vectors."""
        torch.manual_seed(0)
        model = build_model(self.cfg)
        dim = model.backbone.embed_dim
        most = max(self.scale.classes, self.scale.large_classes, *self.scale.class_steps)
        model.text_bank = RandomVectors(dim, model.device, most)
        return model

    def resized(self, short: int, size: tuple[int, int]) -> Tensor:
        """(3, h, w) uint8 noise in the form of an image that is resized to a short side."""
        height, width = (round(side * short / min(size)) for side in size)
        generator = torch.Generator().manual_seed(1)
        return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)

    def item(self, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Model input of a photo; its size is ``scale.photo`` if none is given."""
        height, width = size or self.scale.photo
        image = self.resized(self.scale.crop, (height, width))
        return {"image": image, "height": height, "width": width}

    def large_item(self) -> dict[str, Any]:
        """Model input of a large photo, asked for many classes."""
        vocabulary = self.vocabulary(self.scale.large_classes)
        return self.item(self.scale.large_photo) | {"vocabulary": vocabulary}

    def window(self) -> Tensor:
        """(1, 3, crop, crop) normalised."""
        side = self.scale.crop
        generator = torch.Generator().manual_seed(3)
        return torch.randn(1, 3, side, side, generator=generator).to(self.model.device)

    def training_batch(self, images: int = 1) -> list[dict[str, Tensor]]:
        """Crops with 12 classes each in rectangles, a tenth of the pixels unlabelled."""
        side = self.scale.crop
        labels = rectangles(self.scale.seen, (side, side))
        image = self.resized(side, (side, side))
        return [{"image": image, "sem_seg": torch.from_numpy(labels)} for _ in range(images)]

    def training_step(self, batch: list[dict[str, Tensor]]) -> None:
        """Forward, losses and backward; gradients are dropped."""
        with EventStorage():
            losses = self.model.train()(batch)
        sum(losses.values()).backward()
        self.model.zero_grad()

    def targets(self, batch: list[dict[str, Tensor]]) -> tuple[Tensor, SegTargets]:
        """Images and targets of a batch as the model prepares them."""
        images, sizes = self.model.preprocess_images(batch)
        return images, self.model.preprocess_targets(batch, images.shape[-2:], sizes)

    def fusion(self, classes: int, side: tuple[int, int]) -> ScoreFusion:
        """Random logits of an image of any size, ready to be fused."""
        grid = self.model.inference_settings.grid(*side)
        rows = self.scale.crop // self.model.backbone.patch_size
        generator = torch.Generator().manual_seed(2)
        shape = (len(grid), classes + 1, rows, rows)
        logits = torch.randn(shape, generator=generator).to(self.model.device)
        padded_size = (self.scale.crop, self.scale.crop)
        return ScoreFusion(
            (ViewLogits(logits[:, :-1], logits[:, -1:], grid, padded_size),),
            seen_mask=torch.from_numpy(self.vocabulary(classes).seen_mask).to(self.model.device),
            gate=self.model.gate,
            trusty_target="seen",
            workspace_mib=self.model.inference_settings.workspace_mib,
        )

    def vocabulary(self, classes: int) -> Vocabulary:
        """Names without meaning; every eleventh is unseen."""
        seen = [k % 11 != 10 for k in range(classes)]
        return Vocabulary.from_names([f"class {k}" for k in range(classes)], seen)

    def _config(self, options: tuple[Any, ...]) -> CfgNode:
        scale, clip = self.scale, self.scale.clip
        if not clip:
            clip = str(self._folder / "tiny-clip.json")
            Path(clip).write_text(json_text(_TINY_CLIP))
        entry = {
            "name": self.dataset,
            "images": str(self._folder / "images"),
            "labels": str(self._folder / "labels"),
            "vocabulary": str(self._folder / "vocabulary.json"),
        }
        values = {
            "MODEL.DEVICE": self.device,
            "MODEL.CLIP.NAME": clip,
            "MODEL.CLIP.PRETRAINED": "",
            "MODEL.CLIP.TEMPLATES": scale.templates,
            "MODEL.CLIP.PROMPT.NUM_TOKENS": scale.prompts,
            "MODEL.TAGCLIP.NUM_HEADS": 8 if scale.clip else 4,
            "MODEL.TAGCLIP.TEST.WINDOW": scale.crop,
            "MODEL.TAGCLIP.TEST.STRIDE": scale.stride,
            "INPUT.CROP.ENABLED": True,
            "INPUT.CROP.TYPE": "absolute",
            "INPUT.CROP.SIZE": [scale.crop, scale.crop],
            "INPUT.MIN_SIZE_TEST": scale.crop,
            "INPUT.MAX_SIZE_TEST": 1_000_000,
            "DATASETS.FOLDER_DATASETS": [entry],
            "DATASETS.TRAIN": (self.dataset,),
            "DATASETS.TEST": (self.dataset,),
        }
        flat = [word for pair in values.items() for word in pair]
        return load_config("", [*flat, *options])

    def _write_dataset(self) -> None:
        for name in ("images", "labels"):
            (self._folder / name).mkdir()
        scale = self.scale
        blobs = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(blobs).resize(scale.photo[::-1]).save(self.image)
        label = Image.fromarray(rectangles(scale.classes, scale.photo))
        label.save(self._folder / "labels" / "photo.png")
        names = [f"class {k}" for k in range(scale.classes)]
        vocabulary = Vocabulary.from_names(names, [k < scale.seen for k in range(len(names))])
        path = self._folder / "vocabulary.json"
        write_vocabulary(replace(vocabulary, split="split", ignore_label=255), path)


def rectangles(classes: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 labels: 4 x 4 rectangles of 12 classes, 255 in every tenth row."""
    generator = np.random.default_rng(0)
    chosen = generator.choice(classes, min(12, classes), replace=False).astype(np.uint8)
    grid = generator.choice(chosen, (4, 4))
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    labels = grid.repeat(rows, 0).repeat(columns, 1)[: size[0], : size[1]].copy()
    labels[::10] = 255
    return labels
