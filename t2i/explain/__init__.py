"""Explains images by words: maps of an image for each word, Shapley values of words for a score, and edits of words."""
