"""Folders that a generator wrote: their prompts, and the files in them that are no samples.

Two layouts are known. `t2i sample` writes `manifest.json` beside its images, with a `grid.png`. GenEval's generators write
`metadata.jsonl`, one line with a `prompt`, above a folder `samples`, with a `grid.png` beside it. Either may lie below
the folder that is scored, any number of times.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from t2i.data.folders.index import nfc
from t2i.errors import InputError
from t2i.files import read_regular

MANIFEST, GENEVAL, SAMPLES = "manifest.json", "metadata.jsonl", "samples"
MOST_BYTES = 2**28  # of a manifest
GRIDS = ("grid.png", "grid.jpg")


@dataclass
class Generated:
    """Prompts, seeds and checkpoints of a folder's images, from its manifests.

    Attributes:
        prompts: id -> the prompt of that image.
        others: ids of images that are no samples: grids.
        chosen: the encoder that chose the images among candidates; None: there is none.
    """

    prompts: dict[str, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    chosen: dict[str, Any] | None = None


def read_generated(root: Path, ids: Iterable[str]) -> Generated:
    """Reads the manifests of a folder and of all below it.

    Args:
        ids: of the images, paths below the root.

    Raises:
        InputError: the images of two manifests were chosen by different encoders.
    """
    found = Generated()
    folders: dict[str, list[str]] = {}
    for name in ids:
        folders.setdefault(str(PurePosixPath(name).parent), []).append(name)
    chosen = []
    for folder, names in folders.items():
        if (manifest := _sampled(root / folder)) is not None:
            listed = {nfc(entry["file"]): entry.get("prompt") for entry in manifest["pictures"]}
            its = {name: PurePosixPath(name).name for name in names}
            found.prompts |= {name: listed[base] for name, base in its.items() if isinstance(listed.get(base), str)}
            found.others |= {name for name, base in its.items() if base not in listed}
            chosen.append(manifest.get("reranking"))
            continue
        above = PurePosixPath(folder)
        if above.name == SAMPLES and (prompt := _geneval_prompt(root / above.parent)) is not None:
            found.prompts |= dict.fromkeys(names, prompt)
        elif _geneval_prompt(root / folder) is not None:
            found.others |= {name for name in names if PurePosixPath(name).name in GRIDS}
    if any(one != chosen[0] for one in chosen):
        raise InputError(f"folders below {root} were sampled with different --best-of; score one at a time")
    found.chosen = chosen[0] if chosen else None
    return found


def _sampled(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that `t2i sample` wrote; None if it is another."""
    found = _read(folder / MANIFEST)
    if not isinstance(found, dict) or not {"pictures", "checkpoint", "seed"} <= found.keys():
        return None
    entries = found["pictures"]
    whole = isinstance(entries, list) and all(
        isinstance(one, dict) and isinstance(one.get("file"), str) for one in entries
    )
    return found if whole else None


def _geneval_prompt(folder: Path) -> str | None:
    """The prompt of a folder that a generator for GenEval wrote; None if it is another."""
    found = _read(folder / GENEVAL) if (folder / SAMPLES).is_dir() else None
    prompt = found.get("prompt") if isinstance(found, dict) else None
    return prompt if isinstance(prompt, str) and prompt.strip() else None


def _read(path: Path) -> Any:
    """The JSON value of a file; None where there is none."""
    try:
        return json.loads(read_regular(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
