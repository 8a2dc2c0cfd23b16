"""Writes the README.md of a saved pipeline: what it is, how to use it, how it was trained, what it scores."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.families import FAMILIES
from t2i.metrics.score import Score, read_scores
from t2i.names import counted
from t2i.sampling.saved import Stored

SHOWN = 8


def card_prompts(manifest: Mapping[str, Any]) -> list[str]:
    """Captions to show. Only of the embedded data: others' captions may not be meant to be published."""
    address = str(manifest["config"]["data"]["address"])
    if not address.startswith("shapes-"):
        return []
    return [captions[0] for captions in open_dataset(address, "val", View(limit=SHOWN)).captions]


def score_files(home: Path) -> list[Path]:
    """The score files of a run or a saved pipeline; links, and other programs' files of such a name, are left out."""
    return [path for path in sorted(home.glob("scores*.json")) if not path.is_symlink() and _read(path)]


def _read(path: Path) -> Sequence[Score]:
    try:
        return read_scores(path)
    except InputError:
        return []


def model_card(name: str, stored: Stored, license: str, prompts: Sequence[str], scores: Sequence[Path]) -> str:
    """The card as Markdown, with the front matter that the hub reads: tags, license, and the scores as `model-index`.

    Args:
        name: of the repository or folder, for the usage.
        prompts: the captions of grid.png; none: there is no grid.
        scores: score files to make a table of.
    """
    manifest = stored.manifest
    config = manifest["config"]
    found = [(path, score) for path in scores for score in _read(path)]
    parameters = sum(tensor.numel() for _, tensors in stored.components.values() for tensor in tensors.values())
    size = config["data"]["resolution"]
    example = json.dumps(prompts[0] if prompts else "...", ensure_ascii=False)
    grid = ["![images sampled for the prompts below them](grid.png)", ""] if prompts else []
    lines = [
        f"# {name.rpartition('/')[2]}",
        "",
        f"{_article(FAMILIES[stored.family].words)} that makes images of {size} x {size} pixels from a caption: "
        f"{parameters:,} parameters, text encoder `{stored.text.name}`, trained for {counted(manifest['step'], 'step')} on "
        f"{counted(manifest['images_seen'], 'image')} of `{_public(config['data']['address'])}` with t2i "
        f"{manifest['versions']['t2i']}.{_start(manifest)}",
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
        f"{_knobs(stored)} variety for typical images. An image depends on the seed and its prompt alone.",
        "",
        *_table(found),
        "## Training",
        "",
        "| hyper-parameter | value |",
        "|---|---|",
        *(f"| `{key}` | {_cell(value)} |" for key, value in _leaves(config)),
    ]
    return _front(name.rpartition("/")[2], stored.family, license, found) + "\n".join(lines) + "\n"


def _front(name: str, family: str, license: str, found: Sequence[tuple[Path, Score]]) -> str:
    """The front matter."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=_public(score.protocol.data),
            dataset_name=_public(score.protocol.data),
            dataset_split=score.protocol.split,
            metric_type=score.name.partition("@")[0],
            metric_name=score.name,
            metric_value=score.value,
        )
        for _, score in found
    ]
    data = ModelCardData(
        license=license,
        library_name="t2i",
        pipeline_tag="text-to-image",
        tags=["t2i", "text-to-image", family, *(["gan"] if "gan" in family else [])],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _start(manifest: Mapping[str, Any]) -> str:
    """What the training started from, as a sentence; "" where it was nothing."""
    start = manifest.get("init")
    if not isinstance(start, Mapping):
        return ""
    data = f", trained on `{_public(str(start['data']))}`" if start.get("data") else ""
    return f" Training started from the weights of `{_public(str(start.get('from')))}`{data}."


def _article(words: str) -> str:
    return f"{'An' if words[0] in 'aeiou' and not words.startswith('one') else 'A'} {words}"


def _knobs(stored: Stored) -> str:
    """The knobs of a call and their values here, e.g. "`guidance_scale` (here 2) and `temperature` (here 0.7) trade"."""
    values = {"guidance_scale": stored.guidance_scale, "truncation": stored.truncation}
    kept = {"guidance_scale": "guidance", "truncation": "truncation"}
    values = {key: value for key, value in values.items() if kept[key] in FAMILIES[stored.family].knobs}
    *words, last = [f"`{key}` (here {json.dumps(value)})" for key, value in {**values, **stored.settings}.items()]
    return f"{', '.join(words)} and {last} trade" if words else f"{last} trades"


def _table(found: Sequence[tuple[Path, Score]]) -> list[str]:
    if not found:
        return []
    head = [
        "## Scores",
        "",
        "| score | value | 95 % interval | to be read against | data | protocol |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for path, score in found:
        interval = "" if score.interval is None else f"{score.interval[0]:.4g} to {score.interval[1]:.4g}"
        bounds = ", ".join(f"{name} {value:.4g}" for name, value in score.bounds.items())
        place = f"{_public(score.protocol.data)} {score.protocol.split or ''}".strip()
        rows.append(f"| {score.name} | {score.value:.4g} | {interval} | {bounds} | {place} | {path.name} |")
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
    return " ".join(text.replace("|", "\\|").split())
