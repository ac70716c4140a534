"""CLIP: where its architecture and weights come from, and the class vectors of its text tower."""

from tagclip.modeling.clip.preprocessing import resolve_pixels
from tagclip.modeling.clip.source import CLIPSource
from tagclip.modeling.clip.weights import CLIPWeights, read_clip_weights

__all__ = ["CLIPSource", "CLIPWeights", "read_clip_weights", "resolve_pixels"]
