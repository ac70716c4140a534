"""Checkpoints: written atomically, read without executing anything, refused if they do not fit."""

from tagclip.checkpoint.checkpointer import (
    TagCLIPCheckpointer,
    checkpoint_metadata,
    read_checkpoint,
)
from tagclip.checkpoint.config import checkpoint_config

__all__ = ["TagCLIPCheckpointer", "checkpoint_config", "checkpoint_metadata", "read_checkpoint"]
