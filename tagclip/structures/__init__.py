"""Class lists, which of their classes are seen, their json, and what masks a model has seen."""

from tagclip.structures.provenance import Provenance, Stage
from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import ClassEntry
from tagclip.utils.class_names import name_key

__all__ = ["ClassEntry", "Provenance", "Stage", "Vocabulary", "name_key"]
