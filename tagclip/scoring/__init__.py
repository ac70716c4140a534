"""Scores of predictions that anybody made."""

__all__ = ["MERGES"]

# What a pixel gets that several masks of a COCO json claim: the class of the mask with the highest
# score, of the smallest (the largest is painted first), or of the last.
MERGES = ("highest-score", "largest-first", "last")
