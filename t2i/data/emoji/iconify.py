"""Drawings of an npm package of Iconify such as `@iconify-json/twemoji`: SVG bodies in icons.json, code points in chars.json."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.data.emoji.drawings import Drawing, Style, of_svg, renderer
from t2i.data.emoji.names import names
from t2i.errors import InputError
from t2i.files import check_file, read_json
from t2i.images import BrokenImage, fit
from t2i.names import shown

ICONS, CHARS = "icons.json", "chars.json"
_MOST_BYTES = 2**28
_SPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


class IconifyStyle(Style):
    """The emoji among the icons of a package."""

    def __init__(self, name: str, root: Path) -> None:
        icons, chars = (_read(root / file) for file in (ICONS, CHARS))
        try:
            self._svgs = _svgs(icons, chars or _chars_by_name(icons["icons"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{shown(root / ICONS)} is not an icon set of Iconify; unpack the package again"
            ) from error
        if not self._svgs:
            raise InputError(f"{shown(root)} has no emoji; use a package such as @iconify-json/twemoji")
        self.name, self.keys, self.files, self.renderer = (
            name,
            list(self._svgs),
            [root / ICONS, root / CHARS],
            renderer(),
        )

    def render(self, keys: "list[str]", side: int) -> Iterator[Drawing]:  # type: ignore[override]
        for key in keys:
            data = self._svgs[key].encode()
            try:
                image: Image.Image | str = Image.fromarray(fit(of_svg(data, side), side, "pad"))
            except BrokenImage as error:
                image = str(error)
            yield Drawing(key, hashlib.sha256(data).digest(), image)


def _svgs(icons: Mapping[str, Any], chars: Mapping[str, str]) -> dict[str, str]:
    """Returns the SVG of each key; aliases that rotate or mirror an icon are skipped."""
    svgs = {}
    for code, name in sorted(chars.items()):
        alias = icons.get("aliases", {}).get(name, {})
        icon = icons["icons"].get(alias["parent"] if set(alias) == {"parent"} else name)
        if icon is not None:
            size = {"left": 0, "top": 0, "width": 16, "height": 16}
            box = " ".join(str(icon.get(side, icons.get(side, default))) for side, default in size.items())
            key = "-".join(f"{int(one, 16):X}" for one in code.split("-") if int(one, 16) != 0xFE0F)
            svgs.setdefault(key, f'<svg {_SPACES} viewBox="{box}">{icon["body"]}</svg>')
    return svgs


def _chars_by_name(icons: Mapping[str, Any]) -> dict[str, str]:
    """Returns icon names by code point for a package without chars.json whose icons have the names of Unicode."""
    slugs = {key: re.sub(r"[^a-z0-9]+", "-", entry.name.lower()) for key, entry in names().items()}
    return {key: slug for key, slug in slugs.items() if slug in icons}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{shown(file.parent)} has no file {file.name}; unpack the package again")
    check_file(file, _MOST_BYTES)
    content = read_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{shown(file)} is no JSON object; unpack the package again")
    return content
