"""Which word made what: maps of an image by word, Shapley values of words for a score, and edits of the cells of a word."""
