"""The models that come with the package: folders of `t2i/weights` as `save_pretrained` writes them. Imports no torch."""

import warnings
from pathlib import Path

import t2i

INDEX = "model_index.json"
DEFAULT = "prior"  # makes the images where no run and no model is named
KNOWN = {"emoji": "emoji"}  # what a model knows, where that is not rendered shapes


def shipped() -> dict[str, Path]:
    """Their folders by name."""
    return {found.parent.name: found.parent for found in sorted(Path(t2i.__file__).parent.glob(f"weights/*/{INDEX}"))}


def find(place: str | Path) -> Path:
    """The folder of a shipped model for its bare name, else `place` itself.

    A folder of the same name in the working directory is `./NAME`; a warning says so.
    """
    folder = shipped().get(str(place))
    if folder is None or isinstance(place, Path) and place.exists():
        return Path(place)
    if Path(place).exists():
        warnings.warn(
            f"{place} is the model that comes with t2i; for the {place} in this folder type ./{place}", stacklevel=4
        )
    return folder


def tokenizer_in(place: str | Path) -> Path:
    """The folder of the image tokenizer inside a shipped model, a saved model or a run; `place` where there is none."""
    folder = find(place)
    return inner if (inner := folder / "tokenizer").is_dir() else folder


def dual_encoder_in(place: str | Path) -> Path:
    """The folder of the dual encoder that a shipped model, a saved model or a run reads its text by; else `place`."""
    folder = find(place)
    if folder in shipped().values():
        folder = shared_text_encoder()
    config = folder / "config.yaml"
    if (
        (folder / "dual_encoder.json").is_file()
        or config.is_file()
        and "\nfamily: align\n" in f"\n{config.read_text()}"
    ):
        return folder  # itself one, whose own text encoder may read by another
    inner = (folder / "dual_encoder", folder / "text_encoder" / "dual_encoder", folder / "text" / "dual_encoder")
    return next((path for path in inner if path.is_dir()), folder)


def shared_text_encoder() -> Path:
    """The folder of the text encoder that all shipped models were trained with."""
    return Path(t2i.__file__).parent / "weights" / "text_encoder"


def scorer_dir() -> Path:
    """The folder of the dual encoder that scores images when no other is named."""
    return Path(t2i.__file__).parent / "weights" / "scorer"
