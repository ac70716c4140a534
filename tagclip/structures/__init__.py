"""Class lists: an ordered set of classes, which of them are seen, and their json."""

from tagclip.structures.vocabulary import Vocabulary
from tagclip.structures.vocabulary_class import ClassEntry, name_key

__all__ = ["ClassEntry", "Vocabulary", "name_key"]
