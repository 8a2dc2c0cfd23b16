"""Pieces of a page that needs no other file: every text is escaped, every picture is inside.

What comes from a file of the user's (a caption, a name, a config) reaches the page through `escape` alone.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from t2i.images import BrokenImage, ImageArray, decode
from t2i.report.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser loads nothing but the page
PIXEL_SIDE = 96  # a picture up to this size is shown with its pixels, without loss
MOST_SIDE = 256  # a larger picture is scaled down to this
SHEET_SIDE, SHEET_BYTES = 1400, 150_000  # a contact sheet may be as large; beyond that it is compressed with loss


def data_uri(picture: Image.Image, **how: object) -> str:
    """The picture as text; `how` is as `PIL.Image.Image.save` takes it."""
    file = io.BytesIO()
    picture.save(file, **how)  # pyright: ignore[reportArgumentType]
    return f"data:image/{str(how['format']).lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image(pixels_HWC: ImageArray, spoken: str) -> str:
    """A picture; a small one pixel by pixel."""
    picture = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    small = max(picture.size) <= PIXEL_SIDE
    if small:
        source = data_uri(picture, format="PNG", optimize=True)
    else:
        picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
        source = data_uri(picture, format="WEBP", quality=85, method=4)
    width, height = picture.size
    kind = ' class="pixels"' if small else ""
    return f'<img{kind} src="{source}" width="{width}" height="{height}" alt="{escape(spoken)}">'


def sheet(path: Path, spoken: str) -> str:
    """A contact sheet from a file, or a line that says why not."""
    try:
        picture = decode(path)
    except (BrokenImage, OSError) as error:
        return absent(f"{path.name}: {getattr(error, 'strerror', None) or error}")
    picture.thumbnail((SHEET_SIDE, SHEET_SIDE), Image.Resampling.LANCZOS)
    source = data_uri(picture, format="WEBP", lossless=True, method=3)
    if len(source) > SHEET_BYTES:
        source = data_uri(picture, format="WEBP", quality=75, method=4)
    width, height = picture.size
    return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(spoken)}">'


def absent(why: str) -> str:
    """What would stand here, and is missing."""
    return f'<p class="muted absent">{escape(why)}</p>'


def section(name: str, heading: str, lines: Iterable[str], why_not: str | None = None) -> list[str]:
    """Its lines under a heading; where there are none, a line that says so, or nothing."""
    found = list(lines) or ([absent(why_not)] if why_not else [])
    return [f'<section id="{name}"><h2>{escape(heading)}</h2>', *found, "</section>"] if found else []


def columns(cells: Sequence[str]) -> str:
    """Side by side where there is room, the first above the second on a phone."""
    return f'<div class="columns">{"".join(f"<div>{cell}</div>" for cell in cells)}</div>'


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def facts(pairs: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs.items())
    return f"<dl>{rows}</dl>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain texts in rows; wider than the page, it scrolls by itself."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return scrolling(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>", head[0])


def scrolling(content: str, spoken: str) -> str:
    """Wider than the page it scrolls, by the keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(spoken or "table")}">{content}</div>'


def dot(number: int) -> str:
    """The colour that a run has throughout the page; its name always stands beside it."""
    return f'<i class="run r{number % 8}" aria-hidden="true"></i>'


def page(title: str, body: Sequence[str]) -> str:
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    return "\n".join(["<!doctype html>", '<html lang="en"><head>', *head, "</head><body>", *body, "</body></html>", ""])
