"""Models that others made: folders of transformers, local or from the hub.

This file alone knows transformers. A folder is checked before transformers sees it: regular files of this folder only,
safetensors only, nothing unpickled, no code of the folder run. What is loaded is whole and finite, or refused in one line.
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

from t2i.errors import InputError
from t2i.files import check_file, open_regular, read_json

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
    """A checked folder as `save_pretrained` of transformers writes it."""

    path: Path
    label: str  # names it in messages, e.g. `CLIP folder models/vit-b`
    config: dict[str, Any]
    weights: tuple[str, ...]  # file names

    def digest(self) -> str:
        """sha256 over the names and contents of the files that decide what the model computes; no others count."""
        total = hashlib.sha256()
        index = () if _WEIGHTS in self.weights else (_INDEX,)
        for name in sorted({*self.weights, *index, *_SETTINGS}):
            if (self.path / name).is_file():
                with open_regular(self.path / name) as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"{name}\0{content}\n".encode())
        return total.hexdigest()


def open_folder(place: str | Path, label: str, kinds: Collection[str], advice: Callable[[str], str]) -> ModelFolder:
    """Finds and checks a model folder; a name such as `owner/model` that is no local folder is downloaded from the hub.

    Args:
        label: names it in messages.
        kinds: values of `model_type` in config.json that the caller reads.
        advice: what to do about a model of another `model_type`.

    Raises:
        InputError: there is none, it holds another kind of model, or weights that are pickled, damaged or not there.
    """
    path = find_folder(place, label)
    if not (path / "config.json").exists():
        raise InputError(f"{label} has no config.json; name a folder that holds {HOLDS}{_nearby(path, kinds)}")
    for name in _SETTINGS:
        if (path / name).exists() or (path / name).is_symlink():
            check_file(path / name, _SETTINGS_BYTES)
            if name.endswith(".json") and name != "tokenizer.json":  # which is large, and parsed with a limit of depth
                read_json(path / name)
    config = read_json(path / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(found, str):
        raise InputError(f"{label} names no model_type in its config.json; name a folder that holds {HOLDS}")
    if found not in kinds:
        raise InputError(f"{label} holds a {found!r} model, {advice(found)}{_nearby(path, kinds)}")
    if (path / "adapter_config.json").exists():
        raise InputError(f"{label} holds an adapter (adapter_config.json), not a whole model; merge it and save that")
    weights = _weight_names(path, label, config)
    for name in weights:
        check_file(path / name)
        try:
            with safe_open(path / name, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path / name} is damaged or cut off ({error}); download it again") from error
    return ModelFolder(path, label, config, weights)


def load_model(
    folder: ModelFolder, class_name: str, optional: Collection[str] = (), **options: Any
) -> tuple[Any, set[str]]:
    """Returns the model in float32, frozen and in eval mode, and which of the `optional` weights the files lack.

    Args:
        class_name: of transformers.
        optional: weights that need not be there.

    Raises:
        InputError: files that do not fit or do not fill the model, or weights that are not finite.
    """
    model, report = _load(
        folder, class_name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
    )
    missing = set(report["missing_keys"])
    if absent := sorted(missing - set(optional)):  # transformers would fill them with random numbers
        raise InputError(
            f"{folder.label} lacks {len(absent)} of the model's tensors (first: {absent[0]}); name a folder with the whole model"
        )
    for name, tensor in model.state_dict().items():
        if name not in missing and not tensor.isfinite().all():
            raise InputError(f"{folder.label} has weights that are not finite ({name}); download it again")
    return model.eval().requires_grad_(False), missing


def load_config(folder: ModelFolder) -> Any:
    """Returns the config object of transformers."""
    return _load(folder, "AutoConfig")


def load_image_processor(folder: ModelFolder) -> Any:
    """Returns the preprocessing that the folder names, by Pillow.

    Raises:
        InputError: it names none.
    """
    if not any((folder.path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise InputError(f"{folder.label} has no preprocessor_config.json; put the model's own there")
    return _load(folder, "AutoImageProcessor", backend="pil")


def load_text_tokenizer(folder: ModelFolder, tower: Any) -> Any:
    """Returns the tokenizer of a text tower, padding and cutting on the right.

    In a pipeline folder of diffusers it is in the folder beside the text encoder.

    Raises:
        InputError: there is none, or one whose ids the tower does not read.
    """
    beside = folder.path.with_name(folder.path.name.replace("text_encoder", "tokenizer"))
    place = next((one for one in (folder.path, beside) if any((one / name).is_file() for name in _VOCABULARIES)), None)
    if place is None:
        raise InputError(f"{folder.label} has no tokenizer; put tokenizer.json and tokenizer_config.json there")
    vocabularies = [name for name in _VOCABULARIES if (place / name).is_file()]
    if vocabularies[0].endswith(".model") and not _is_installed("sentencepiece", "google.protobuf"):
        raise InputError(
            f"{folder.label} has its tokenizer only as {vocabularies[0]}, which needs sentencepiece: "
            "pip install sentencepiece protobuf"
        )
    tokenizer = _load(folder, "AutoTokenizer", place)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:  # GPT-2 has none; the mask hides what takes its place
        tokenizer.pad_token = tokenizer.eos_token
    _refuse_other_tokens(tokenizer, tower, folder.label)
    return tokenizer


def _refuse_other_tokens(tokenizer: Any, tower: Any, label: str) -> None:
    """Raises InputError when a tokenizer has no vocabulary, or ids that the tower does not read."""
    ids = tokenizer.get_vocab()
    # transformers makes a tokenizer of special tokens alone when a file of the vocabulary is missing, and says nothing
    words = ids.keys() - set(tokenizer.all_special_tokens) - tokenizer.get_added_vocab().keys()
    if len(words) < 2 or not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(f"{label} has no tokenizer; put tokenizer.json and tokenizer_config.json there")
    highest, embedded = max(ids.values()), tower.get_input_embeddings().num_embeddings
    if highest >= embedded:
        raise InputError(
            f"the tokenizer of {label} has token {highest}, but the model embeds only {embedded}; "
            "put the model's own tokenizer there"
        )
    if tower.config.model_type == "clip_text_model":
        # CLIP pools where it finds this id, and silently at the first token when there is none. The first CLIP configs
        # say 2, which means the highest id.
        end = highest if tower.config.eos_token_id == 2 else tower.config.eos_token_id
        if tokenizer.eos_token_id != end:
            raise InputError(
                f"the tokenizer of {label} ends captions with token {tokenizer.eos_token_id}, the model expects "
                f"{end} (eos_token_id in config.json); put the model's own tokenizer there"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and load reports of transformers."""
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
    """Writes a model, and its tokenizer or preprocessing, for whoever the umask lets read files."""
    with quiet():
        for part in (model, *others):
            part.save_pretrained(folder)
    mode = (folder / "config.json").stat().st_mode
    for file in folder.iterdir():  # safetensors leaves weights that only their owner can read
        file.chmod(mode)


def _load(folder: ModelFolder, class_name: str, place: Path | None = None, **options: Any) -> Any:
    import transformers

    loader = getattr(transformers, class_name)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):  # models draw initial weights from the caller's generator
            # trust_remote_code=False and not its default None, which asks at the keyboard whether to run a folder's code
            return loader.from_pretrained(
                str(place or folder.path), local_files_only=True, trust_remote_code=False, **options
            )
    # transformers raises OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, ... on bad folders
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{folder.label} cannot be loaded: its files are damaged or do not fit together ({reason}); download it again"
        ) from error


def find_folder(place: str | Path, label: str) -> Path:
    """The local folder `place`, or the one that the hub gives for such a name; raises InputError when there is none."""
    path = Path(place).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{label} is a file; name the folder that holds {HOLDS}")
    if not _HUB_ID.fullmatch(str(place)):
        raise InputError(f"{label} does not exist; name a folder that holds {HOLDS}, or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=_FROM_HUB))
    # no network, no such model, not allowed, offline: huggingface_hub has an error for each, and requests its own
    except Exception as error:
        raise InputError(
            f"{label}: no such folder, and the hub gave no such model ({type(error).__name__}); name a folder that holds {HOLDS}"
        ) from error


def _weight_names(path: Path, label: str, config: dict[str, Any]) -> tuple[str, ...]:
    """Returns plain names of the weight files, all in this folder and all safetensors."""
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
                f"{label} has only pickled weights ({pickled[0]}), which can run code when they are loaded; convert them "
                f"where you trust them: AutoModel.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
            )
        raise InputError(f"{label} has no {_WEIGHTS}; name a folder that holds {HOLDS}")
    for name in sorted(map(str, names)):
        if not name.endswith(".safetensors"):
            raise InputError(f"{label} names {name!r} as its weights; only .safetensors files are read")
        if Path(name).name != name:
            raise InputError(f"{label} names {name!r} as its weights, which is outside of it; download it again")
        if not (path / name).exists():
            raise InputError(f"{label} lacks {name}, a part of its weights; download it again")
    return tuple(sorted(map(str, names)))


def _nearby(path: Path, kinds: Collection[str]) -> str:
    """Names the folder below `path` that holds such a model, as in pipelines, hub caches and sentence-transformers."""
    below = (found for depth in range(1, 5) for found in sorted(path.glob("/".join(["*"] * depth) + "/config.json")))
    for count, file in enumerate(below):
        if count == 200:
            break
        try:
            check_file(file, _SETTINGS_BYTES)
            config = read_json(file)
        except InputError:
            continue
        if isinstance(config, dict) and config.get("model_type") in kinds:
            return f"; {file.parent} holds a {config['model_type']!r} model: name that"
    return ""


def _is_installed(*modules: str) -> bool:
    from importlib.util import find_spec

    return all(find_spec(module) is not None for module in modules)
