"""Training without the images that show unseen classes: a stricter protocol."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from detectron2.utils import comm
from tqdm import tqdm

from tagclip.errors import ConfigError

__all__ = ["without_unseen_images"]

logger = logging.getLogger(__name__)


def without_unseen_images(
    samples: Sequence[dict[str, Any]], shows_unseen: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Keep the images without a single pixel of an unseen class, in their order.

    Reads every label file once, to choose images; training never sees these labels. Several
    processes share the files among them, so all of them must call this.

    Args:
        samples: detectron2's dicts with ``sem_seg_file_name``.
        shows_unseen: `ZeroShotDatasetMapper.shows_unseen`.

    Raises:
        ConfigError: no image is left.
        DatasetError: a label file is missing or damaged, or holds unknown values.
    """
    world_size = comm.get_world_size()
    own = samples[comm.get_rank() :: world_size]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = tqdm(
            pool.map(shows_unseen, own),
            total=len(own),
            desc="Looking for unseen classes",
            disable=None,
            leave=False,
        )
        shares = comm.all_gather(list(found))
    kept = [
        sample
        for index, sample in enumerate(samples)
        if not shares[index % world_size][index // world_size]
    ]
    if not kept:
        raise ConfigError(
            f"DATASETS.ZERO_SHOT.SKIP_UNSEEN_IMAGES: each of the {len(samples)} training images "
            "shows an unseen class, expected some without; set it to False or take another split"
        )
    logger.info(
        "%d of %d training images show no unseen class and are kept", len(kept), len(samples)
    )
    return kept
