"""Tables applied to label maps, beside numpy's own indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagclip.utils.look_up import look_up


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.uint8, bool, np.int16, np.uint16, np.int32, np.int64, np.float64]),
    st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
    st.integers(1, 400),
    st.sampled_from([(5, 6), (1, 1), (7,), (3, 0)]),
    st.booleans(),
)
def test_looking_up_is_indexing(seed, dtype, kind, length, shape, is_turned: bool) -> None:
    rng = np.random.default_rng(seed)
    # Every pattern of bits is a value.
    table = rng.integers(0, 256, length * np.dtype(dtype).itemsize, dtype=np.uint8)
    table = (table % 2).astype(bool) if dtype is bool else table.view(dtype)
    label = rng.integers(0, min(length, np.iinfo(kind).max + 1), shape).astype(kind)
    label = label[..., ::-1] if is_turned else label
    found = look_up(table, label)
    assert found.dtype == dtype and found.shape == shape
    assert found.tobytes() == table[label].tobytes()


def test_a_value_behind_the_table_is_an_error() -> None:
    with pytest.raises(IndexError):
        look_up(np.zeros(5, np.int32), np.array([[5]], np.int32))
