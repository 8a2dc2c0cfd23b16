"""Model folders as transformers' `save_pretrained` writes them, from the disk or the hub, loaded whole or refused."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator
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


HOLDS = "config.json, model.safetensors and the tokenizer's files"


INDEX = "model.safetensors.index.json"


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


# (path, config of the folder) -> the tower in float32, and the names of its weights that the files lack
LoadTower = Callable[[str, Any], tuple[Any, set[str]]]


def read_model(path: str, name: str, model_types: Collection[str], load_tower: LoadTower) -> tuple[Any, Any]:
    """Tower and tokenizer of the text encoder `name` from a local folder or a hub id.

    Raises:
        InputError: nothing there, another kind of model, unsafe, damaged or incomplete weights, a foreign tokenizer.
    """
    is_folder = Path(path).is_dir()
    _check_files(path, name)
    try:
        with quiet(bars=not is_folder):
            tower, tokenizer = _read(path, name, model_types, load_tower)
    except InputError:
        raise
    # transformers raises OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, ... on bad folders
    except Exception as error:
        place = "the files are damaged" if is_folder else "no such folder, and the hub gave none"
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"cannot load text.path={path!r} for {name}: {place} ({reason}); give a folder that holds {HOLDS}"
        ) from error
    _check_tokenizer(tokenizer, tower, path)
    return tower, tokenizer


def load_weights(model_class: Any, path: str, **options: Any) -> tuple[Any, set[str]]:
    """`model_class.from_pretrained` in float32, and the names of the weights that the files lack."""
    tower, report = model_class.from_pretrained(
        path, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True, **options
    )
    return tower, set(report["missing_keys"])


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Silences transformers' load report and, unless `bars`, its progress bars (a download keeps them)."""
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def _read(path: str, name: str, model_types: Collection[str], load_tower: LoadTower) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    # trust_remote_code=False and not its default None, which asks at the keyboard whether to run a folder's code
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type not in model_types:
        raise InputError(
            f"text.path={path!r} holds a {config.model_type!r} model, not {name}; set text.encoder to what it is, "
            "or name another folder"
        )
    _refuse_other_files(path, config)
    tower, missing = load_tower(path, config)
    if missing:
        raise InputError(
            f"the weights in {path!r} lack {len(missing)} tensors of {name} (first: {min(missing)}); "
            "name a folder with the whole model"
        )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # GPT-2 has none; the mask hides what stands there
        tokenizer.pad_token = tokenizer.eos_token
    return tower, tokenizer


def _check_files(path: str, name: str) -> None:
    """What can be told before transformers is asked, whose messages name other files and other fixes."""
    folder = Path(path)
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"text.path={path!r} is a file; {name} needs the folder that holds {HOLDS}")
        if not _HUB_ID.fullmatch(path):
            raise InputError(
                f"text.path={path!r} does not exist; {name} needs a folder that holds {HOLDS}, or a hub id"
            )
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"text.path={path!r} has no config.json; {name} needs a folder that holds {HOLDS}")
    if not (folder / "model.safetensors").is_file() and not (folder / INDEX).is_file():
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise InputError(
                f"text.path={path!r} has only pickled weights ({pickled[0]}), which can run code when they are loaded; "
                f"convert them where you trust them: AutoModel.from_pretrained({path!r}).save_pretrained({path!r})"
            )
        raise InputError(f"text.path={path!r} has no model.safetensors; {name} needs a folder that holds {HOLDS}")


def _refuse_other_files(path: str, config: Any) -> None:
    """A folder can name its weight files itself, and transformers would read pickled ones (weights only, no code)."""
    index = Path(path) / INDEX
    named = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    named |= {getattr(config, "transformers_weights", None)} - {None}
    if foreign := sorted(file for file in named if not str(file).endswith((".safetensors", INDEX))):
        raise InputError(f"text.path={path!r} names {foreign[0]!r} as its weights; only .safetensors files are read")


def _check_tokenizer(tokenizer: Any, tower: Any, path: str) -> None:
    ids = tokenizer.get_vocab()
    # transformers makes a tokenizer of special tokens alone when the vocabulary's files are missing, and says nothing
    words = ids.keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys()
    if len(words) < 2 or not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(f"text.path={path!r} has no tokenizer; put tokenizer.json and tokenizer_config.json there")
    highest, embedded = max(ids.values()), tower.get_input_embeddings().num_embeddings
    if highest >= embedded:
        raise InputError(
            f"the tokenizer in {path!r} has token {highest}, but the model embeds only {embedded}; "
            "put the model's own tokenizer there"
        )
    if tower.config.model_type == "clip_text_model":
        # CLIP pools where it finds this id, and silently at the first token when there is none. A 2 stands in the first
        # CLIP configs and means: the highest id.
        expected = highest if tower.config.eos_token_id == 2 else tower.config.eos_token_id
        if tokenizer.eos_token_id != expected:
            raise InputError(
                f"the tokenizer in {path!r} ends captions with token {tokenizer.eos_token_id}, the model expects "
                f"{expected} (eos_token_id in config.json); put the model's own tokenizer there"
            )
