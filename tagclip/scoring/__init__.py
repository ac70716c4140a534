"""Scores of predictions that anybody made."""
