"""Where the tests find what they test."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / "tools"
STORED = REPOSITORY / "tests" / "data" / "formats" / "files"
