"""The models that come with the package: folders of `t2i/weights` as `save_pretrained` writes them. Imports no torch."""

import warnings
from pathlib import Path

import t2i

INDEX = "model_index.json"
DEFAULT = "prior"  # samples if no run and no model is named
KNOWN = {"emoji": "emoji"}  # subjects of models that were not trained on rendered shapes


def shipped() -> dict[str, Path]:
    """Returns the folders of the models by name."""
    return {index.parent.name: index.parent for index in sorted(Path(t2i.__file__).parent.glob(f"weights/*/{INDEX}"))}


def find(place: str | Path) -> Path:
    """Returns the folder of the shipped model with this name, or else `place` itself.

    Warns if the working directory has a folder of the same name, which must be named as `./NAME`.
    """
    folder = shipped().get(str(place))
    if folder is None or isinstance(place, Path) and place.exists():
        return Path(place)
    if Path(place).exists():
        warnings.warn(
            f"{place} is the model that ships with t2i; for the {place} in this folder type ./{place}", stacklevel=4
        )
    return folder


def tokenizer_in(place: str | Path) -> Path:
    """Returns the folder of the image tokenizer in a shipped model, a saved model or a run; `place` if it has none."""
    folder = find(place)
    return inner if (inner := folder / "tokenizer").is_dir() else folder


def dual_encoder_in(place: str | Path) -> Path:
    """Returns the folder of the dual encoder that encodes text for a shipped model, a saved model or a run.

    Returns `place` itself if it is a dual encoder, or if it has none.
    """
    folder = find(place)
    if folder in shipped().values():
        folder = shared_text_encoder()
    config = folder / "config.yaml"
    is_align_run = config.is_file() and "\nfamily: align\n" in f"\n{config.read_text()}"
    if is_align_run or (folder / "dual_encoder.json").is_file():
        return folder  # its own text encoder may be part of another dual encoder
    inner = (folder / "dual_encoder", folder / "text_encoder" / "dual_encoder", folder / "text" / "dual_encoder")
    return next((path for path in inner if path.is_dir()), folder)


def shared_text_encoder() -> Path:
    """Returns the folder of the text encoder that the shipped models of rendered shapes were trained with."""
    return Path(t2i.__file__).parent / "weights" / "text_encoder"


def scorer_dir() -> Path:
    """Returns the folder of the dual encoder that scores images by default."""
    return Path(t2i.__file__).parent / "weights" / "scorer"
