"""The packages that no requirement of ours can bring."""

from __future__ import annotations

from importlib.util import find_spec

from tagclip.errors import NotInstalledError

__all__ = ["check_installed"]

# Neither can be a plain requirement: detectron2 is not on PyPI under its name, and two
# distributions provide cv2.
_MODULES = ("detectron2", "cv2")


def check_installed() -> None:
    """Look for detectron2 and cv2, without importing them.

    Raises:
        NotInstalledError: one is missing; the message says how to install it.
    """
    for module in _MODULES:
        if find_spec(module) is None:
            raise NotInstalledError(
                f"tagclip needs {module}, which is not installed; run: tagclip setup-detectron2"
            )
