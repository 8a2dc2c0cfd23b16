"""Reads the prompts of folders that a generator wrote, and finds the files in them that are not samples.

Two layouts are known. `t2i sample` writes `manifest.json` and `grid.png` beside its images. GenEval's generators write
`metadata.jsonl`, one object with a `prompt` and no file name, beside a folder `samples`, or beside the images themselves; a
grid lies next to it. A scored folder may hold any number of such folders.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from t2i.data.folders.index import nfc
from t2i.errors import InputError
from t2i.files import read_regular
from t2i.images import SUFFIXES
from t2i.sampling.prompts import COLUMNS

MANIFEST, GENEVAL, SAMPLES = "manifest.json", ("metadata.jsonl", "metadata.json"), "samples"
MOST_BYTES = 2**28  # size of a manifest
GRID = "grid"  # name of a grid without its suffix


@dataclass
class Generated:
    """Contents of the manifests of a folder.

    Attributes:
        prompts: id -> prompt of that image.
        others: ids of images that are not samples, such as grids.
        chosen: the encoder that selected the images among candidates, if any.
    """

    prompts: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    chosen: dict[str, Any] | None = None


def read_generated(root: Path, ids: Iterable[str]) -> Generated:
    """Reads the manifests of a folder and of all folders below it.

    Args:
        ids: paths of the images below the root.

    Raises:
        InputError: the images of two manifests were selected by different encoders.
    """
    generated = Generated()
    folders: dict[str, list[str]] = {}
    for name in ids:
        folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
    chosen = []
    for folder, names in folders.items():
        if (manifest := _manifest(root / folder)) is not None:
            listed = {nfc(entry["file"]): entry.get("prompt") for entry in manifest["pictures"]}
            bases = {name: PurePosixPath(name).name for name in names}
            generated.prompts |= {
                name: listed[base] for name, base in bases.items() if isinstance(listed.get(base), str)
            }
            generated.others |= {name for name, base in bases.items() if base not in listed}
            chosen.append(manifest.get("reranking"))
            continue
        path = PurePosixPath(folder)
        if path.name == SAMPLES and (prompt := _geneval_prompt(root / path.parent)) is not None:
            generated.prompts |= dict.fromkeys(names, prompt)
        elif (prompt := _geneval_prompt(root / folder)) is not None:
            beside = (root / folder / SAMPLES).is_dir()  # the samples are there, and everything here is a grid
            grids = {name for name in names if beside or PurePosixPath(name).stem.lower() == GRID}
            generated.others |= grids
            generated.prompts |= dict.fromkeys([name for name in names if name not in grids], prompt)
    if any(one != chosen[0] for one in chosen):
        raise InputError(f"folders below {root} were sampled with different --best-of; score one at a time")
    generated.chosen = chosen[0] if chosen else None
    return generated


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Returns the manifest if `t2i sample` wrote the folder, else None."""
    manifest = _read(folder / MANIFEST)
    if not isinstance(manifest, dict) or not {"pictures", "checkpoint", "seed"} <= manifest.keys():
        return None
    entries = manifest["pictures"]
    valid = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("file"), str) for entry in entries
    )
    return manifest if valid else None


def _geneval_prompt(folder: Path) -> str | None:
    """Returns the prompt if a generator for GenEval wrote the folder, else None."""
    metadata = next((found for name in GENEVAL if (found := _read(folder / name)) is not None), None)
    if not isinstance(metadata, dict):
        return None
    texts = {key: value for key, value in metadata.items() if isinstance(value, str) and value.strip()}
    if "file_name" in texts or any(text.lower().endswith(SUFFIXES) for text in texts.values()):
        return None  # a row about one image
    keys = COLUMNS if (folder / SAMPLES).is_dir() else COLUMNS[:1]
    return next((texts[key] for key in keys if key in texts), None)


def _read(path: Path) -> Any:
    """Returns the JSON value of a file, or None."""
    try:
        return json.loads(read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
