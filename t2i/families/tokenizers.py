"""Loads and saves image tokenizers of any family."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from t2i.errors import InputError, reason_of
from t2i.families import FAMILIES, ImageTokenizer
from t2i.files import new_folder, open_regular, read_regular
from t2i.names import resolve, shown
from t2i.trained import Tensors, TrainedRun, open_run
from t2i.weights import tokenizer_in

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def tokenizer_class(family: str, where: Path) -> Any:
    """Returns the `ImageTokenizer` class of a family; raises InputError, which names `where`, if the family has none."""
    target = FAMILIES[family].tokenizer if family in FAMILIES else None
    if target is None:
        first = next(name for name, entry in FAMILIES.items() if entry.tokenizer)
        raise InputError(
            f"{where} holds a model of the family {shown(family[:40])!r}, which is not an image tokenizer; train one: "
            f"t2i train {first}"
        )
    return resolve(target)


def load_tokenizer(path: str | Path) -> ImageTokenizer:
    """Reads the newest intact checkpoint of a run of `t2i train vqvae`, or a tokenizer that `save_tokenizer` wrote.

    Args:
        path: a folder of either kind, or a run, a saved model or a packaged model that holds a tokenizer.

    Raises:
        InputError: `path` is none of these, belongs to another family, or is damaged.
    """
    path = tokenizer_in(path)
    if not (path / CONFIG).is_file() and not (path / "checkpoints").is_dir():
        what = "does not exist" if not path.exists() else f"is not a tokenizer: it has neither checkpoints nor {CONFIG}"
        raise InputError(f"{path} {what}; train one: t2i train vqvae --run-dir {path}")
    try:
        return _read_component(path) if (path / CONFIG).is_file() else tokenizer_of(open_run(path))
    except (ValidationError, KeyError, TypeError, ValueError, SafetensorError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the tokenizer at {path} is damaged ({reason_of(error)}); train it again: t2i train vqvae"
        ) from error


def tokenizer_beside(run: TrainedRun) -> ImageTokenizer:
    """Reads the copy of the tokenizer in the run directory of a generator.

    Raises:
        InputError: it is missing, or is not the one that the run was trained with.
    """
    folder = run.folder / "tokenizer"
    if not folder.is_dir():
        raise InputError(f"{folder} is missing, which holds the tokenizer of this run; copy the whole run directory")
    tokenizer = load_tokenizer(folder)
    if tokenizer.digest() != run.manifest.get("tokenizer_digest"):
        raise InputError(f"{folder} holds another tokenizer than the {run.family} was trained with; restore that one")
    return tokenizer


def tokenizer_of(run: TrainedRun) -> ImageTokenizer:
    """Returns the tokenizer that a run trained; raises InputError for a run of another family."""
    cls = tokenizer_class(run.family, run.folder)
    return cls.load(cls.components_of(run))


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Writes a folder for `load_tokenizer`, atomically."""
    ((values, tensors),) = tokenizer.components().values()
    with new_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
        (partial / WEIGHTS).write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def built_tokenizer(component: tuple[Any, Tensors], where: Path = Path("tokenizer")) -> ImageTokenizer:
    """Builds the tokenizer of a saved component; raises InputError, which names `where`, if it belongs to another family."""
    family = component[0].get("family") if isinstance(component[0], dict) else None
    cls = tokenizer_class(str(family), where)
    (part,) = cls.parts
    return cls.load({part: component})


def _read_component(folder: Path) -> ImageTokenizer:
    values = json.loads(read_regular(folder / CONFIG))
    open_regular(folder / WEIGHTS).close()
    return built_tokenizer((values, load_file(folder / WEIGHTS)), folder)
