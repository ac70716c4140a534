"""Whether a tensor is still the one that something was computed from."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

__all__ = ["tensor_identity"]


def tensor_identity(tensor: Tensor) -> Hashable:
    """Return a key that changes when a tensor is moved, replaced or written to.

    Tensors made in inference mode count no versions: what is written to them is not seen.
    """
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.device, tensor.dtype
