"""Model folders as transformers' `save_pretrained` writes them, from the disk or the hub, loaded whole or refused."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from t2i.errors import InputError

Loader = Callable[..., Any]  # a `from_pretrained` of transformers
WHOLE = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_READ = ("*.safetensors", "*.json", "*.txt", "*.model")  # of a model on the hub; these decide the digest too


def local_folder(place: str | Path, what: str) -> Path:
    """The folder itself, or that of `owner/name` on the hub, downloaded once.

    Raises:
        InputError: there is none.
    """
    path = Path(place).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(str(place)):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=list(_READ)))
    # no network, no such model, not allowed, offline: huggingface_hub has an error for each, and requests its own
    except Exception as error:
        raise InputError(
            f"no folder {place}, and the hub gave no such model ({type(error).__name__}); name a {what} folder"
        ) from error


def load_model(path: Path, what: str, kind: str, *parts: Loader) -> tuple[Any, ...]:
    """A model and what else lies in its folder.

    Args:
        what: names the model in messages.
        kind: `model_type` in config.json.
        parts: each loads one thing from the folder; the first the model.

    Raises:
        InputError: no folder of that kind, or files that are damaged or do not fill the model.
    """
    if not (path / "config.json").is_file():
        raise InputError(
            f"{what} folder {path} has no config.json; name one that save_pretrained of transformers wrote"
        )
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
        if found != kind:
            raise InputError(f"{path} holds a model of type {found!r}, not {kind!r}; name a {what} folder")
        with _quiet_transformers():
            (model, report), *others = [
                part(path, local_files_only=True, **(WHOLE if k == 0 else {})) for k, part in enumerate(parts)
            ]
    except InputError:
        raise
    # Missing and damaged files raise OSError, ValueError, SafetensorError, ... according to which.
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise InputError(f"{what} folder {path} cannot be loaded ({reason}); download it again") from error
    if absent := sorted(report["missing_keys"]):  # transformers fills them with random numbers
        what = f"{absent[0]} and {len(absent) - 1} other tensors" if len(absent) > 1 else absent[0]
        raise InputError(f"{what} folder {path} lacks the weights of {what}; download it again")
    return model, *others


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no table of missing weights, which becomes one error line."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def digest_folder(path: Path) -> str:
    """sha256 over the names and contents of a model folder's weights, configs and tokenizer files."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in {pattern[1:] for pattern in _READ}:
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{file.name}\0{content}\n".encode())
    return digest.hexdigest()
