"""Comparison of this library with golden tensors of the official model (docs/method.md)."""

from pathlib import Path

# Made by `golden.trim` of the public golden file: every key, planes at every third pixel.
TRIMMED = Path(__file__).with_name("public_golden.pt")
