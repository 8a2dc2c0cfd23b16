"""Searches collections of images by words and by images."""
