"""The mini CLIP: its vocabulary, model, training and accuracy."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from open_clip import SimpleTokenizer
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from tagclip.projects.minibench.clip_pairs import PREFIXES, crops, pairs, words
from tagclip.projects.minibench.scenes import CLASSES
from tagclip.utils.files import open_atomic

__all__ = ["CONTEXT", "build_model", "crop_accuracy", "model_config", "train", "write_merges"]

# The segmentation configs normalise like this, too.
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
CONTEXT = 32


def write_merges(path: Path) -> int:
    """Write a gzipped BPE file in which every caption word is one token; return the ids."""
    merges = []
    for word in words():
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        while len(symbols) > 1:
            merge = f"{symbols[0]} {symbols[1]}"
            if merge not in merges:
                merges.append(merge)
            symbols = ["".join(symbols[:2]), *symbols[2:]]
    text = "\n".join(("#version: 0.2", *merges, ""))
    # A fixed time stamp keeps the file the same in every run.
    with open_atomic(path) as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(text.encode())
    return SimpleTokenizer(bpe_path=str(path)).vocab_size


def model_config(vocab_size: int) -> dict:
    """Return the open_clip config of the mini CLIP."""
    return {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 96,
            "head_width": 24,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "width": 64,
            "heads": 4,
            "layers": 2,
            # open_clip itself wants the path: get_tokenizer(name, bpe_path=...).
            "tokenizer_kwargs": {"bpe_path": "mini_bpe.txt.gz"},
        },
    }


def build_model(config: dict) -> CLIP:
    """Build open_clip's model with temperature 20."""
    return CLIP(**config, init_logit_scale=math.log(20.0))


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """Symmetric cross-entropy; identical captions share the target."""
    logits = scale * image @ text.T
    same = torch.tensor([[float(a == b) for b in captions] for a in captions])
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def crop_accuracy(model: CLIP, tokenizer: SimpleTokenizer, per_class: int = 40) -> float:
    """Zero-shot accuracy in percent on crops of held-out seeds, one template."""
    images, labels = crops(per_class)
    model.eval()
    text = model.encode_text(tokenizer([f"a photo of a {name}" for name in CLASSES]), True)
    vectors = model.encode_image(to_input(images), True)
    return 100 * float(((vectors @ text.T).argmax(1).numpy() == labels).mean())


def to_input(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> normalised (N, 3, H, W)."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2) - MEAN) / STD


def train(
    model: CLIP,
    tokenizer: SimpleTokenizer,
    *,
    num_images: int,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> None:
    """Run AdamW with warm-up and cosine decay over random batches.

    Args:
        model: of `build_model`.
        tokenizer: of its captions.
        num_images: drawn beforehand.
        steps: of the optimizer.
        batch_size: images of a step.
        lr: the highest learning rate.
        seed: of the batches.
    """
    images, captions = pairs(num_images)
    inputs = to_input(images)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    for step in (progress := trange(steps, desc="mini CLIP")):
        warm = min(1.0, (step + 1) / 50)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * cosine
        chosen = rng.integers(len(inputs), size=batch_size)
        batch = inputs[chosen]
        flip = torch.from_numpy(rng.random(batch_size) < 0.5)
        batch = torch.where(flip[:, None, None, None], batch.flip(3), batch)
        texts = [captions[i] for i in chosen]
        prefixed = [PREFIXES[rng.integers(len(PREFIXES))] + text for text in texts]
        vectors = model.encode_image(batch, True)
        text_vectors = model.encode_text(tokenizer(prefixed, CONTEXT), True)
        loss = contrastive_loss(vectors, text_vectors, model.logit_scale.exp(), texts)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(max=math.log(100.0))
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
