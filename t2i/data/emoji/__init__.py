"""Emoji as captioned images: drawings from SVG files, image files and colour fonts, names from the `emoji` package."""
