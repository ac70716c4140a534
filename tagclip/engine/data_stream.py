"""The training stream: sample and augmentation at position i are pure functions of (seed, i).

So worker count, prefetching and resuming do not change what the model sees.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tagclip.data.datasets.walk import map_files
from tagclip.errors import ConfigError
from tagclip.utils.parent import leave_signals_to_parent
from tagclip.utils.sockets import check_sockets

__all__ = [
    "StreamLoader",
    "contents_sha256",
    "files_sha256",
    "leave_signals_to_main",
    "seeded",
    "seeded_step",
    "shared_samples",
]


def _mix(*numbers: int) -> int:
    """Hash integers to 32 well-mixed bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the random generators of Python, numpy and torch inside; restore them afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = _mix(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def files_sha256(samples: Iterable[dict[str, Any]]) -> str:
    """sha256 (hex) of the names of images and label files in their order, without folders."""
    found = hashlib.sha256()
    for sample in samples:
        for key in ("file_name", "sem_seg_file_name"):
            found.update(os.fsencode(os.path.basename(sample.get(key, ""))) + b"\0")
    return found.hexdigest()


def contents_sha256(samples: Sequence[dict[str, Any]]) -> str:
    """sha256 (hex) of the contents of label files and the sizes of images, in their order.

    Images are too large to be read for that. A file that cannot be read counts as empty: what
    needs it says so.
    """
    found = hashlib.sha256()
    for part in map_files(_contents, samples, "Comparing labels"):
        found.update(part)
    return found.hexdigest()


def _contents(sample: dict[str, Any]) -> bytes:
    image, label = (sample.get(key, "") for key in ("file_name", "sem_seg_file_name"))
    try:
        content = Path(label).read_bytes()
        size = os.path.getsize(image)
    except OSError:
        content, size = b"", 0
    return hashlib.sha256(content).digest() + size.to_bytes(8)


class _Stream(Dataset):
    """Position in the stream -> mapped sample."""

    def __init__(
        self, dataset_dicts: Sequence[dict[str, Any]], mapper: Callable[[dict], dict], seed: int
    ) -> None:
        self.samples = DatasetFromList(list(dataset_dicts), copy=False)
        self._mapper, self._seed = mapper, seed

    def _order(self, epoch: int) -> np.ndarray:
        return _epoch_order(self._seed, len(self.samples), epoch)

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.source(position)
        with seeded(self._seed, position, 1):
            return self._mapper(sample)

    def source(self, position: int) -> dict[str, Any]:
        epoch, offset = divmod(position, len(self.samples))
        return self.samples[int(self._order(epoch)[offset])]

    def repetition(self, position: int, epochs: int) -> int:
        """Position of the same image so many epochs later."""
        epoch, offset = divmod(position, len(self.samples))
        later = self._order(epoch + epochs) == self._order(epoch)[offset]
        return (epoch + epochs) * len(self.samples) + int(later.argmax())


@lru_cache(maxsize=2)
def _epoch_order(seed: int, size: int, epoch: int) -> np.ndarray:
    """Which sample comes at each offset of an epoch: (size,) int64."""
    return np.random.default_rng([seed, epoch, 0]).permutation(size)


class StreamLoader:
    """Iterable over this process's training batches, from any iteration on."""

    def __init__(
        self,
        dataset_dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict], dict],
        *,
        batch_size: int,
        max_iter: int,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Keep the parts; nothing is read before the first batch is asked for.

        Args:
            dataset_dicts: detectron2's standard dicts, at least one.
            mapper: dict -> sample.
            batch_size: of all processes together, a multiple of ``world_size``.
            max_iter: iteration at which the stream ends.
            seed: 0 to 2**32 - 1.
            num_workers: loader processes.
            rank: of this process.
            world_size: number of processes.
        """
        self._stream = _Stream(dataset_dicts, mapper, seed)
        self._batch, self._max_iter, self._workers = batch_size, max_iter, num_workers
        self._rank, self._world_size = rank, world_size
        self.start_iter = 0

    @property
    def samples(self) -> Sequence[dict[str, Any]]:
        """The dataset dicts, in the order in which they were given."""
        return self._stream.samples

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the batches of iterations ``start_iter`` to ``max_iter``.

        ``start_iter`` is read when the first batch is asked for: a trainer may make the iterator
        before it knows where it resumes.
        """
        share = self._batch // self._world_size
        # Rank r of iteration t takes the positions from t B + r b to t B + (r + 1) b.
        starts = range(
            self.start_iter * self._batch + self._rank * share,
            self._max_iter * self._batch,
            self._batch,
        )
        yield from DataLoader(
            self._stream,
            batch_sampler=(range(start, start + share) for start in starts),
            num_workers=self._workers,
            collate_fn=shared_samples,
            # The loader draws a base seed for its workers, which ours do not use.
            generator=torch.Generator(),
            worker_init_fn=leave_signals_to_main,
        )

    def sample(self, position: int) -> dict[str, Any]:
        """What the mapper makes of a position; iteration t begins at t times the batch size."""
        return self._stream[position]

    def source(self, position: int) -> dict[str, Any]:
        """The dataset dict that `sample` is made of."""
        return self._stream.source(position)

    def positions(self, position: int, count: int) -> list[int]:
        """Where an image comes: at ``position``, and once in each of the epochs after it."""
        return [self._stream.repetition(position, epochs) for epochs in range(count)]


def shared_samples(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collate samples as they are; a loader process puts their tensors into shared memory.

    torch would do so after the process has handed the batch on: where there is no room, or no
    socket by which the main process is told of it, the batch is lost, and waited for for ever.

    Args:
        samples: of a batch.

    Raises:
        ConfigError: there is no room, or no socket can be made.
    """
    worker = get_worker_info()
    if worker:
        _check_hand_over()
    for sample in samples if worker else ():
        for value in sample.values():
            if isinstance(value, Tensor):
                _share(value, worker.num_workers)
    return list(samples)


@lru_cache(maxsize=1)
def _check_hand_over() -> None:
    """Once in each loader process: the main one never asks, so that none inherits an answer."""
    check_sockets("loader processes hand on batches", ", or DATALOADER.NUM_WORKERS 0 (needs none)")


def _share(tensor: Tensor, workers: int) -> None:
    try:
        tensor.share_memory_()
    except RuntimeError as error:
        raise ConfigError(
            f"DATALOADER.NUM_WORKERS: found {workers}, which hand on batches in shared memory, and "
            f"no room there (/dev/shm) for {tensor.nbytes} bytes more, expected some; give it more "
            "(docker run --shm-size 8g), or lower DATALOADER.NUM_WORKERS: 0 needs none"
        ) from error


def leave_signals_to_main(worker: int) -> None:
    """Let a loader process outlive the signals that its whole group gets.

    The main one saves, for which it may need more batches, and ends its workers itself. They also
    end when it dies, as torch sees to.

    Args:
        worker: number of the loader process; `torch.utils.data.DataLoader` gives it.
    """
    leave_signals_to_parent()


def seeded_step(seed: int, rank: int, iteration: int) -> None:
    """Seed all generators for one training step; iteration -1 is the building of the model."""
    mixed = _mix(seed, rank, iteration + 1, 2)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
