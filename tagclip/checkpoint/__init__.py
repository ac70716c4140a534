"""Checkpoints: written atomically, read without executing anything, refused if they do not fit."""

from tagclip.checkpoint.checkpointer import TagCLIPCheckpointer, load_trained, trained_state
from tagclip.checkpoint.folder import last_checkpoint
from tagclip.checkpoint.metadata import checkpoint_config, checkpoint_metadata
from tagclip.checkpoint.reading import find_weights, read_checkpoint

__all__ = [
    "TagCLIPCheckpointer",
    "checkpoint_config",
    "checkpoint_metadata",
    "find_weights",
    "last_checkpoint",
    "load_trained",
    "read_checkpoint",
    "trained_state",
]
