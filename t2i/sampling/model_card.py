"""The README.md of a saved pipeline: what it is, what it draws, how to use it, how it was trained, what it scores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.config import yaml
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.families import FAMILIES
from t2i.metrics.score import read_scores
from t2i.sampling.saved import Stored

SHOWN = 8


def card_prompts(manifest: Mapping[str, Any]) -> list[str]:
    """Captions to show. Only of the embedded data: others' captions may not be meant to be published."""
    address = str(manifest["config"]["data"]["address"])
    if not address.startswith("shapes-"):
        return []
    return [captions[0] for captions in open_dataset(address, "val", View(limit=SHOWN)).captions]


def model_card(name: str, stored: Stored, license: str, prompts: Sequence[str], scores: Sequence[Path]) -> str:
    """The card as Markdown with the front matter that the hub reads.

    Args:
        name: of the repository or folder, for the usage.
        prompts: what grid.png shows; none: there is no grid.
        scores: score files to make a table of.
    """
    manifest = stored.manifest
    config = manifest["config"]
    kind = FAMILIES[stored.family].words
    front = {
        "license": license,
        "library_name": "t2i",
        "pipeline_tag": "text-to-image",
        "tags": ["t2i", "text-to-image", stored.family, *(["gan"] if "gan" in stored.family else [])],
    }
    parameters = sum(tensor.numel() for _, tensors in stored.components.values() for tensor in tensors.values())
    size = config["data"]["resolution"]
    data = _public(config["data"]["address"])
    example = json.dumps(prompts[0] if prompts else "...", ensure_ascii=False)
    grid = ["![pictures drawn for the prompts below them](grid.png)", ""] if prompts else []
    lines = [
        f"---\n{yaml.dump(front)}---",
        f"# {name.rpartition('/')[2]}",
        "",
        f"A {kind} that draws pictures of {size} x {size} pixels from a caption: {parameters:,} parameters, "
        f"text encoder `{stored.text.name}`, trained for {manifest['step']:,} steps on {manifest['images_seen']:,} "
        f"pictures of `{data}` with t2i {manifest['versions']['t2i']}.",
        "",
        *grid,
        "## Use",
        "",
        "```python",
        "from t2i.pipeline import TextToImagePipeline",
        "",
        f"pipe = TextToImagePipeline.from_pretrained({json.dumps(name)})",
        f'pipe({example}, num_images_per_prompt=4, seed=0).images[0].save("0.png")',
        "```",
        "",
        f"{_knobs(stored)} trade variety for typical pictures. A picture depends on the seed and its prompt alone.",
        "",
        *_scores(scores),
        "## Training",
        "",
        "| hyper-parameter | value |",
        "|---|---|",
        *(f"| `{key}` | {_cell(value)} |" for key, value in _leaves(config)),
    ]
    return "\n".join(lines) + "\n"


def _knobs(stored: Stored) -> str:
    """The knobs of a call and their values here, e.g. "`guidance_scale` (here 2) and `temperature` (here 0.7)"."""
    values = {"guidance_scale": stored.guidance_scale, "truncation": stored.truncation}
    if stored.settings:
        values = {"guidance_scale": stored.guidance_scale, **stored.settings}
    *words, last = [f"`{key}` (here {json.dumps(value)})" for key, value in values.items()]
    return f"{', '.join(words)} and {last}"


def _scores(paths: Sequence[Path]) -> list[str]:
    rows: list[str] = []
    for path in paths:
        try:
            scores = read_scores(path)
        except InputError:  # another program's file of such a name
            continue
        for score in scores:
            interval = "" if score.interval is None else f"{score.interval[0]:.4g} to {score.interval[1]:.4g}"
            bounds = ", ".join(f"{name} {value:.4g}" for name, value in score.bounds.items())
            where = f"{_public(score.protocol.data)} {score.protocol.split or ''}".strip()
            rows.append(f"| {score.name} | {score.value:.4g} | {interval} | {bounds} | {where} | {path.name} |")
    if not rows:
        return []
    head = [
        "## Scores",
        "",
        "| score | value | 95 % interval | to be read against | data | protocol |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *rows, ""]


def _public(address: str) -> str:
    """An address without the folders above it, which are nobody's business."""
    kind, colon, rest = address.rpartition(":")
    return f"{kind}{colon}{Path(rest).name}"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _cell(value: Any) -> str:
    text = _public(value) if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|")
