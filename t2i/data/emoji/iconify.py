"""Drawings from an npm package of Iconify, as `@iconify-json/twemoji`: SVG bodies in icons.json, code points in chars.json."""

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
    """The icons of one package that are emoji."""

    def __init__(self, name: str, root: Path) -> None:
        icons, chars = (_read(root / file) for file in (ICONS, CHARS))
        try:
            self._svgs = _svgs(icons, chars or _chars_by_name(icons["icons"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{shown(root / ICONS)} has no icons as Iconify writes them; unpack it again") from error
        if not self._svgs:
            raise InputError(f"{shown(root)} has no icon of an emoji; take a package such as @iconify-json/twemoji")
        self.name, self.keys, self.files, self.maker = name, list(self._svgs), [root / ICONS, root / CHARS], renderer()

    def drawn(self, keys: "list[str]", side: int) -> Iterator[Drawing]:  # type: ignore[override]
        for key in keys:
            data = self._svgs[key].encode()
            try:
                found: Image.Image | str = Image.fromarray(fit(of_svg(data, side), side, "pad"))
            except BrokenImage as error:
                found = str(error)
            yield Drawing(key, hashlib.sha256(data).digest(), found)


def _svgs(icons: Mapping[str, Any], chars: Mapping[str, str]) -> dict[str, str]:
    """Returns the SVG of each key; aliases that turn or mirror an icon are left out."""
    found = {}
    for code, name in sorted(chars.items()):
        alias = icons.get("aliases", {}).get(name, {})
        icon = icons["icons"].get(alias["parent"] if set(alias) == {"parent"} else name)
        if icon is not None:
            size = {"left": 0, "top": 0, "width": 16, "height": 16}
            box = " ".join(str(icon.get(side, icons.get(side, default))) for side, default in size.items())
            key = "-".join(f"{int(one, 16):X}" for one in code.split("-") if int(one, 16) != 0xFE0F)
            found.setdefault(key, f'<svg {_SPACES} viewBox="{box}">{icon["body"]}</svg>')
    return found


def _chars_by_name(icons: Mapping[str, Any]) -> dict[str, str]:
    """Returns icons by code point where a package tells none and names them as Unicode does."""
    return {
        key: name for key, own in names().items() if (name := re.sub(r"[^a-z0-9]+", "-", own.name.lower())) in icons
    }


def _read(file: Path) -> dict[str, Any]:
    check_file(file, _MOST_BYTES)
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{shown(file)} is no table of icons; unpack it again")
    return found
