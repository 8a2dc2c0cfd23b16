"""From pictures to tokens and back, behind one protocol. A new family is one class, one line in `TOKENIZERS`."""

import json
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from t2i.errors import InputError
from t2i.samplers import Components

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from t2i.images import ImageArray

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ImageTokenizer(Protocol):
    """A frozen tokenizer: tokens of a picture depend on that picture alone, and a picture on its tokens alone.

    Each class also has two constructors' halves:
        components_of(state, manifest) -> Components    what of a checkpoint codes pictures; KeyError names what it lacks
        load(components) -> Self                        InputError or ValidationError when they do not fit
    """

    parts: tuple[str, ...]  # names of the components, each a folder of a saved pipeline
    resolution: int  # pixels a side
    grid: int  # tokens a side; L = grid * grid, row by row
    codebooks: int  # Q
    codebook_size: int  # K

    def encode(self, images_BHWC: "ImageArray") -> "Tensor":
        """indices_BLQ, int64 in [0, K) on the CPU, of uint8 pictures [B, resolution, resolution, 3]."""
        ...

    def decode(self, indices_BLQ: "Tensor") -> "ImageArray":
        """uint8 [B, resolution, resolution, 3]."""
        ...

    def digest(self) -> str:
        """sha256 over all that decides tokens: every weight and buffer, and the config of the networks."""
        ...

    def components(self) -> Components: ...

    def to(self, device: "torch.device") -> None: ...


# family -> "module:class"
TOKENIZERS: dict[str, str] = {"vqvae": "t2i.vqvae.saved:FrozenTokenizer"}


def tokenizer_class(family: object, where: Path) -> Any:
    """The `ImageTokenizer` of a family; InputError names `where` when there is none."""
    if family not in TOKENIZERS:
        raise InputError(
            f"{where} holds a model of the family {str(family)[:40]!r}, which is no image tokenizer; train one: "
            f"t2i train {next(iter(TOKENIZERS))}"
        )
    module, _, name = TOKENIZERS[str(family)].partition(":")
    return getattr(import_module(module), name)


def load_tokenizer(path: Path) -> ImageTokenizer:
    """Reads a run of `t2i train vqvae` (its newest intact checkpoint), or a component that a pipeline saved.

    Raises:
        InputError: `path` is neither, is of another family, or is damaged.
    """
    from pydantic import ValidationError
    from safetensors import SafetensorError

    path = Path(path)
    try:
        return _read_component(path) if (path / CONFIG).is_file() else _read_run(path)
    except (ValidationError, KeyError, ValueError, SafetensorError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(f"the tokenizer at {path} is damaged ({reason}); train it again: t2i train vqvae") from error


def save_tokenizer(tokenizer: ImageTokenizer, folder: Path) -> None:
    """Writes the folder that `load_tokenizer` reads, whole or not at all."""
    from safetensors.torch import save_file

    from t2i.folders import new_folder

    ((values, tensors),) = tokenizer.components().values()
    with new_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / WEIGHTS)


def _read_component(folder: Path) -> ImageTokenizer:
    from safetensors.torch import load_file

    values = json.loads((folder / CONFIG).read_text())
    family = values.get("family") if isinstance(values, dict) else None
    cls = tokenizer_class(family, folder)
    (part,) = cls.parts
    return cls.load({part: (values, load_file(folder / WEIGHTS))})


def _read_run(run: Path) -> ImageTokenizer:
    from t2i import checkpoint

    root = run / "checkpoints"
    if not root.is_dir():
        what = "does not exist" if not run.exists() else f"is no tokenizer: it holds neither checkpoints nor {CONFIG}"
        raise InputError(f"{run} {what}; train one: t2i train vqvae --run-dir {run}")
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        newest = checkpoint.latest(root)
    if newest is None:
        why = f"none is intact: {skipped[0].message}" if skipped else "there is none yet"
        raise InputError(f"{run} has no checkpoint to read, {why}; run `t2i train vqvae --run-dir {run}` to its end")
    for warning in skipped:
        warnings.warn(warning.message, stacklevel=3)
    state, manifest = checkpoint.load(newest)
    cls = tokenizer_class(manifest.get("family"), run)
    return cls.load(cls.components_of(state, manifest))
