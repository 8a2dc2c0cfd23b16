"""Writes the model card of a saved pipeline: description, usage, scores and training config."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.config.load import leaves
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.families import FAMILIES, parameters_of
from t2i.images import ImageArray, grid
from t2i.metrics.score import Score, read_scores
from t2i.names import counted
from t2i.sampling.saved import Stored

SHOWN = 8


def write_card(
    folder: Path,
    stored: Stored,
    name: str,
    license: str,
    prompts: Sequence[str] | None,
    sample: Callable[[list[str]], Sequence[ImageArray]],
) -> None:
    """Writes README.md, copies of the score files, and grid.png with an image of each prompt.

    Args:
        name: name of the repository or folder, for the usage.
        license: as the hub spells it.
        prompts: none: no grid. None: held-out captions of the embedded shapes, none for other data.
        sample: samples one image for each prompt.
    """
    prompts = _default_prompts(stored.manifest) if prompts is None else list(prompts)
    if prompts:
        grid(list(sample(prompts)), prompts, columns=4).save(folder / "grid.png")
    scores = _score_files(stored.home)
    for path in scores:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "README.md").write_text(_card(name, stored, license, prompts, scores), "utf-8")


def _default_prompts(manifest: Mapping[str, Any]) -> list[str]:
    """Returns captions of the embedded data. Captions of other data may be private."""
    address = str(manifest["config"]["data"]["address"])
    if not address.startswith("shapes-"):
        return []
    return [captions[0] for captions in open_dataset(address, "val", View(limit=SHOWN)).captions]


def _score_files(home: Path) -> list[Path]:
    """Returns the score files of a run or a saved pipeline, without links and files of other programs."""
    return [path for path in sorted(home.glob("scores*.json")) if not path.is_symlink() and _read(path)]


def _read(path: Path) -> Sequence[Score]:
    try:
        return read_scores(path)
    except InputError:
        return []


def _card(name: str, stored: Stored, license: str, prompts: Sequence[str], files: Sequence[Path]) -> str:
    """Returns the card as Markdown, with the front matter that the hub reads: tags, license, scores as `model-index`."""
    scores = [(path, score) for path in files for score in _read(path)]
    example = json.dumps(prompts[0] if prompts else "...", ensure_ascii=False)
    lines = [
        f"# {name.rpartition('/')[2]}",
        "",
        _summary(stored),
        "",
        *(["![images sampled for the prompts below them](grid.png)", ""] if prompts else []),
        "## Use",
        "",
        "```python",
        "from t2i.pipeline import TextToImagePipeline",
        "",
        f"pipe = TextToImagePipeline.from_pretrained({json.dumps(name)})",
        f'pipe({example}, num_images_per_prompt=4, seed=0).images[0].save("0.png")',
        "```",
        "",
        f"{_knobs(stored)} variety for typical images. An image depends only on its prompt and the seed.",
        "",
        *_table(scores),
        "## Training",
        "",
        "| hyper-parameter | value |",
        "|---|---|",
        *(f"| `{key}` | {_cell(value)} |" for key, value in leaves(stored.manifest["config"])),
    ]
    return _front(name.rpartition("/")[2], stored.family, license, scores) + "\n".join(lines) + "\n"


def _summary(stored: Stored) -> str:
    manifest, data = stored.manifest, stored.manifest["config"]["data"]
    words, size = FAMILIES[stored.family].words, data["resolution"]
    article = "An" if words[0] in "aeiou" and not words.startswith("one") else "A"
    return (
        f"{article} {words} that makes images of {size} x {size} pixels from a caption: "
        f"{parameters_of(stored.components):,} parameters, text encoder `{stored.text.name}`, trained for "
        f"{counted(manifest['step'], 'step')} on {counted(manifest['images_seen'], 'image')} of "
        f"`{_public(data['address'])}` with t2i {manifest['versions']['t2i']}.{_start(manifest)}{_privacy(manifest)}"
    )


def _privacy(manifest: Mapping[str, Any]) -> str:
    """Returns a sentence about the privacy of the training, or "" if there is no guarantee."""
    spent = manifest.get("privacy")
    if not isinstance(spent, Mapping):
        return ""
    return (
        f" Training was ({spent['epsilon']:.3g}, {spent['delta']:g})-differentially private for adding or removing one image "
        f"(DP-SGD, noise multiplier {spent['noise_multiplier']:g}, {counted(spent['steps'], 'step')})."
    )


def _front(name: str, family: str, license: str, scores: Sequence[tuple[Path, Score]]) -> str:
    """Returns the front matter."""
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
        for _, score in scores
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
    """Returns a sentence about the weights that the training started from, or "" if it started from none."""
    start = manifest.get("init")
    if not isinstance(start, Mapping):
        return ""
    data = f", trained on `{_public(str(start['data']))}`" if start.get("data") else ""
    return f" Training started from the weights of `{_public(str(start.get('from')))}`{data}."


def _knobs(stored: Stored) -> str:
    """Lists the settings of a call with their values: "`guidance_scale` (here 2) and `temperature` (here 0.7) trade"."""
    values = {"guidance_scale": stored.guidance_scale, "truncation": stored.truncation}
    knobs = {"guidance_scale": "guidance", "truncation": "truncation"}
    values = {key: value for key, value in values.items() if knobs[key] in FAMILIES[stored.family].knobs}
    *words, last = [f"`{key}` (here {json.dumps(value)})" for key, value in {**values, **stored.settings}.items()]
    return f"{', '.join(words)} and {last} trade" if words else f"{last} trades"


def _table(scores: Sequence[tuple[Path, Score]]) -> list[str]:
    if not scores:
        return []
    head = [
        "## Scores",
        "",
        "| score | value | 95 % interval | compare with | data | protocol |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for path, score in scores:
        interval = "" if score.interval is None else f"{score.interval[0]:.4g} to {score.interval[1]:.4g}"
        bounds = ", ".join(f"{name} {value:.4g}" for name, value in score.bounds.items())
        place = f"{_public(score.protocol.data)} {score.protocol.split or ''}".strip()
        rows.append(f"| {score.name} | {score.value:.4g} | {interval} | {bounds} | {place} | {path.name} |")
    return [*head, *rows, ""]


def _public(address: str) -> str:
    """Returns an address without its parent folders, which are private."""
    kind, colon, rest = address.rpartition(":")
    return f"{kind}{colon}{Path(rest).name}"


def _cell(value: Any) -> str:
    text = _public(value) if isinstance(value, str) else json.dumps(value)
    return " ".join(text.replace("|", "\\|").split())
