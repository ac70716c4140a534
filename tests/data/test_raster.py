"""Stored values of label files: read as another library wrote them, or refused with a remedy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from helpers.label_writers import WRITERS, Writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagclip.data.raster import read_raster
from tagclip.errors import DatasetError


def _is_read(writer: Writer, folder: Path, shape: tuple[int, int], seed: int) -> bool:
    """Whether the values come back; if not, the refusal says what to do."""
    ids = np.random.default_rng(seed).integers(writer.low, writer.high, shape, endpoint=True)
    ids.flat[0], ids.flat[-1] = writer.low, writer.high
    path = folder / f"label{writer.suffix}"
    writer.write(str(path), ids)
    try:
        raster = read_raster(path)
    except DatasetError as error:
        assert re.fullmatch(rf"{re.escape(str(path))}: .+; .+", str(error)), writer.name
        return False
    expected = writer.stored(ids)
    if raster.values.ndim == 3 and expected.ndim == 2:
        full = np.full_like(ids, np.iinfo(raster.values.dtype).max)
        expected = np.stack([ids, ids, ids, full][: raster.values.shape[2]], 2)
    np.testing.assert_array_equal(raster.values, expected, err_msg=writer.name)
    kinds = (np.uint8, np.int32, np.int64) if raster.values.ndim == 2 else (np.uint8, np.uint16)
    assert raster.values.dtype in kinds
    return True


def test_every_kind_of_every_library(tmp_path: Path) -> None:
    refused = [w.name for w in WRITERS.values() if not _is_read(w, tmp_path, (19, 21), 0)]
    assert not [name for name in refused if WRITERS[name].is_common]
    # So that the list of common ones is no excuse.
    assert len(refused) < len(WRITERS) / 3


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(WRITERS)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_any_size(tmp_path: Path, name: str, height: int, width: int, seed: int) -> None:
    is_read = _is_read(WRITERS[name], tmp_path, (height, width), seed)
    assert is_read or not WRITERS[name].is_common
