"""Loads pretrained models from folders of transformers, local or from the hub.

No other file imports transformers' loaders. A folder is checked before transformers reads it: its weights must be safetensors
in regular files of this folder; nothing is unpickled and no code in the folder is run. Models that are incomplete or have
weights that are not finite are refused.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from t2i.errors import InputError, reason_of
from t2i.files import at_home, check_file, open_regular, read_json
from t2i.names import installed

HOLDS = "config.json, model.safetensors and the tokenizer's files"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_SETTINGS = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "merges.txt", *_VOCABULARIES,
)  # fmt: skip
_FROM_HUB = ["*.safetensors", "*.json", "*.txt", "*.model"]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_SETTINGS_BYTES = 2**28


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder, as written by transformers' `save_pretrained`."""

    path: Path
    label: str  # its name in messages, e.g. `CLIP folder models/vit-b`
    config: dict[str, Any]
    weights: tuple[str, ...]  # file names

    def digest(self) -> str:
        """Returns the SHA-256 of the names and contents of those files that the model's outputs depend on."""
        total = hashlib.sha256()
        index = () if _WEIGHTS in self.weights else (_INDEX,)
        for name in sorted({*self.weights, *index, *_SETTINGS}):
            if (self.path / name).is_file():
                with open_regular(self.path / name) as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"{name}\0{content}\n".encode())
        return total.hexdigest()


def open_folder(place: str | Path, label: str, kinds: Collection[str], advice: Callable[[str], str]) -> ModelFolder:
    """Finds and checks a model folder; a name such as `owner/model` without a local folder is downloaded from the hub.

    Args:
        label: its name in messages.
        kinds: the values of `model_type` in config.json that the caller supports.
        advice: returns what to do about a model of another `model_type`.

    Raises:
        InputError: the folder does not exist or holds another kind of model, or its weights are missing, pickled or damaged.
    """
    path = find_folder(place, label)
    if not (path / "config.json").exists():
        raise InputError(f"{label} has no config.json; name a folder that holds {HOLDS}{_nearby(path, kinds)}")
    for name in _SETTINGS:
        if (path / name).exists() or (path / name).is_symlink():
            check_file(path / name, _SETTINGS_BYTES)
            if name.endswith(".json") and name != "tokenizer.json":  # it is large, and tokenizers parses it safely
                read_json(path / name)
    config = read_json(path / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise InputError(f"{label} has no model_type in its config.json; name a folder that holds {HOLDS}")
    if kind not in kinds:
        raise InputError(f"{label} holds a {kind!r} model, {advice(kind)}{_nearby(path, kinds)}")
    if (path / "adapter_config.json").exists():
        raise InputError(
            f"{label} holds an adapter (adapter_config.json), not a whole model; merge it and save the merged model"
        )
    weights = _weight_names(path, label, config)
    for name in weights:
        check_file(path / name)
        try:
            with safe_open(path / name, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path / name} is damaged or incomplete ({error}); download it again") from error
    return ModelFolder(path, label, config, weights)


def load_model(
    folder: ModelFolder, class_name: str, optional: Collection[str] = (), **options: Any
) -> tuple[Any, set[str]]:
    """Returns the model in float32, frozen and in eval mode, and the names of missing `optional` weights.

    Args:
        class_name: a class of transformers.
        optional: names of weights that may be missing.

    Raises:
        InputError: the files do not fit the model, lack some of its weights, or hold weights that are not finite.
    """
    model, report = _load(
        folder, class_name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
    )
    missing = set(report["missing_keys"])
    if absent := sorted(missing - set(optional)):  # transformers would initialise them randomly
        raise InputError(
            f"{folder.label} lacks {len(absent)} of the model's tensors (first: {absent[0]}); name a folder with the whole "
            "model"
        )
    for name, tensor in model.state_dict().items():
        if name not in missing and not tensor.isfinite().all():
            raise InputError(f"{folder.label} has weights that are not finite ({name}); download it again")
    return model.eval().requires_grad_(False), missing


def load_config(folder: ModelFolder) -> Any:
    """Returns transformers' config object."""
    return _load(folder, "AutoConfig")


def load_image_processor(folder: ModelFolder) -> Any:
    """Returns the folder's image processor, which uses Pillow.

    Raises:
        InputError: the folder has none.
    """
    if not any((folder.path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InputError(f"{folder.label} has no preprocessor_config.json; add that of the model")
    return _load(folder, "AutoImageProcessor", backend="pil")


def load_text_tokenizer(folder: ModelFolder, tower: Any) -> Any:
    """Returns the tokenizer of a text tower, with padding and truncation on the right.

    In a pipeline folder of diffusers, the tokenizer is in a folder beside the text encoder.

    Raises:
        InputError: there is no tokenizer, or its ids do not fit the tower.
    """
    beside = folder.path.with_name(folder.path.name.replace("text_encoder", "tokenizer"))
    place = next((one for one in (folder.path, beside) if any((one / name).is_file() for name in _VOCABULARIES)), None)
    if place is None:
        raise InputError(f"{folder.label} has no tokenizer; add tokenizer.json and tokenizer_config.json")
    vocabularies = [name for name in _VOCABULARIES if (place / name).is_file()]
    if vocabularies[0].endswith(".model") and not all(map(installed, ("sentencepiece", "google.protobuf"))):
        raise InputError(
            f"{folder.label} has its tokenizer only as {vocabularies[0]}, which requires sentencepiece: "
            "pip install sentencepiece protobuf"
        )
    tokenizer = _load(folder, "AutoTokenizer", place)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # as for GPT-2; the mask hides the substitute
        tokenizer.pad_token = tokenizer.eos_token
    _refuse_other_tokens(tokenizer, tower, folder.label)
    return tokenizer


def _refuse_other_tokens(tokenizer: Any, tower: Any, label: str) -> None:
    """Raises InputError if a tokenizer has no vocabulary or its ids do not fit the tower."""
    ids = tokenizer.get_vocab()
    # if a vocabulary file is missing, transformers silently makes a tokenizer with special tokens only
    words = ids.keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys()
    if len(words) < 2 or not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(f"{label} has no tokenizer; add tokenizer.json and tokenizer_config.json")
    highest, embedded = max(ids.values()), tower.config.vocab_size
    if highest >= embedded:
        raise InputError(
            f"the tokenizer of {label} has token {highest}, but the model embeds only {embedded}; "
            "replace it by the model's tokenizer"
        )
    if tower.config.model_type == "clip_text_model":
        # CLIP pools at the position of this id, and silently at the first token without it. The first CLIP configs have 2,
        # which means the highest id.
        end = highest if tower.config.eos_token_id == 2 else tower.config.eos_token_id
        if tokenizer.eos_token_id != end:
            raise InputError(
                f"the tokenizer of {label} ends captions with token {tokenizer.eos_token_id}, but the model expects "
                f"{end} (eos_token_id in config.json); replace it by the model's tokenizer"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and load reports."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def save_copies(folder: Path, model: Any, *others: Any) -> None:
    """Saves a model with its tokenizer or preprocessor, with file permissions that follow the umask."""
    with quiet():
        for part in (model, *others):
            part.save_pretrained(folder)
    mode = (folder / "config.json").stat().st_mode
    for file in folder.iterdir():  # safetensors writes files that only their owner can read
        file.chmod(mode)


def _load(folder: ModelFolder, class_name: str, place: Path | None = None, **options: Any) -> Any:
    import transformers

    loader = getattr(transformers, class_name)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # initialising weights would use the caller's generator
            # trust_remote_code=False, since its default None asks on the terminal whether to run code of the folder
            return loader.from_pretrained(
                str(place or folder.path), local_files_only=True, trust_remote_code=False, **options
            )
    # for bad folders, transformers raises OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, ...
    except Exception as error:
        raise InputError(
            f"{folder.label} cannot be loaded: its files are damaged or do not fit together ({reason_of(error)}); download it "
            "again"
        ) from error


def find_folder(place: str | Path, label: str) -> Path:
    """Returns the local folder `place`, or a downloaded one of the hub; raises InputError if neither exists."""
    path = at_home(place)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{label} is a file; name the folder that holds {HOLDS}")
    if not _HUB_ID.fullmatch(str(place)):
        raise InputError(f"{label} does not exist; name a folder that holds {HOLDS}, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=_FROM_HUB))
    # huggingface_hub and requests raise many kinds of errors: no network, no such model, no permission, offline, ...
    except Exception as error:
        raise InputError(
            f"{label}: no such folder, and no such model could be downloaded from the hub ({type(error).__name__}); name a "
            f"folder that holds {HOLDS}"
        ) from error


def _weight_names(path: Path, label: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the weight files, which must all be safetensors files in this folder."""
    if named := config.get("transformers_weights"):
        names = {named}
    elif (path / _WEIGHTS).exists():
        names = {_WEIGHTS}
    elif (path / _INDEX).exists():
        check_file(path / _INDEX, _SETTINGS_BYTES)
        index = read_json(path / _INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{path / _INDEX} maps no weights to files; download it again")
        names = set(map(str, weight_map.values()))
    else:
        pickled = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLED)
        if pickled:
            raise InputError(
                f"{label} has only pickled weights ({pickled[0]}), which can run code when they are loaded; if you trust "
                f"them, convert them: AutoModel.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
            )
        raise InputError(f"{label} has no {_WEIGHTS}; name a folder that holds {HOLDS}")
    for name in sorted(map(str, names)):
        if not name.endswith(".safetensors"):
            raise InputError(f"{label} names {name!r} as its weights; only .safetensors files are read")
        if Path(name).name != name:
            raise InputError(f"{label} names {name!r} as its weights, which is outside the folder; download it again")
        if not (path / name).exists():
            raise InputError(f"{label} lacks {name}, which holds part of its weights; download it again")
    return tuple(sorted(map(str, names)))


def _nearby(path: Path, kinds: Collection[str]) -> str:
    """Suggests a folder below `path` that holds such a model, as in pipelines, hub caches and sentence-transformers."""
    below = (file for depth in range(1, 5) for file in sorted(path.glob("/".join(["*"] * depth) + "/config.json")))
    for count, file in enumerate(below):
        if count == 200:
            break
        try:
            check_file(file, _SETTINGS_BYTES)
            config = read_json(file)
        except InputError:
            continue
        if isinstance(config, dict) and config.get("model_type") in kinds:
            return f"; {file.parent} holds a {config['model_type']!r} model: name that folder"
    return ""
