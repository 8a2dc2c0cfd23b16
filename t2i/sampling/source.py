"""Reads initial weights for a run: from another run, a saved model, a model that ships with the package, or the hub."""

from pathlib import Path
from typing import Any, Protocol

from t2i.align.frozen import DESCRIPTION, AnyDualEncoder, FrozenDualEncoder, load_dual_encoder
from t2i.align.frozen import TOKENIZER as VOCABULARY
from t2i.config.training import StartConfig
from t2i.errors import InputError
from t2i.families import FAMILIES, Source
from t2i.families.tokenizers import CONFIG, load_tokenizer
from t2i.files import read_utf8
from t2i.sampling import saved
from t2i.text import load_encoder
from t2i.trained import TrainedRun, open_run
from t2i.weights import INDEX, find, scorer_dir, shared_text_encoder

TOKENIZER = "tokenizer"  # the component of a saved model that encodes images
NOT_WEIGHTS = ("ema", "best", "patience")  # parts of a checkpoint that repeat the main part's weights, or hold none


class StartingRun(Protocol):
    """The attributes of `t2i.training.run.Run` that decide whether starting weights are needed."""

    is_new: bool
    family: str


def open_start(run: StartingRun, config: StartConfig) -> Source | None:
    """Reads the weights that `init_from` names; None without it, and for a resumed run, whose checkpoint has its weights.

    Raises:
        InputError: as `open_source`.
    """
    return open_source(config.init_from, run.family) if run.is_new and config.init_from else None


def open_source(address: str, family: str) -> Source:
    """Reads the weights at `address` for a run of `family`.

    Raises:
        InputError: there is no model, it is damaged, or it is of another family.
    """
    place = _folder(address, family)
    if (place / DESCRIPTION).is_file():
        return _dual_encoder(address, place, family, load_dual_encoder(place))
    if (place / CONFIG).is_file() and not (place / INDEX).is_file():
        tokenizer = load_tokenizer(place)
        return _tokenizer(address, place, family, *next(iter(tokenizer.components().values())))
    if not (place / INDEX).is_file() and place.is_dir():
        return _run(address, open_run(place), family)
    stored = saved.read(address)
    if family == "vqvae" and TOKENIZER in stored.components:
        return _tokenizer(address, stored.home, family, *stored.components[TOKENIZER])
    if family == "align" and isinstance(dual := getattr(stored.text, "dual", None), FrozenDualEncoder):
        return _dual_encoder(address, stored.home, family, dual)
    _refuse_other(address, stored.family, family)
    (main,) = (tensors for name, (_, tensors) in stored.components.items() if name != TOKENIZER)
    manifest = dict(stored.manifest)
    if TOKENIZER in stored.components:  # stored in half precision it is another than the one of the training
        manifest["tokenizer_digest"] = load_tokenizer(stored.home / TOKENIZER).digest()
    return Source(stored.home, address, manifest, {FAMILIES[family].main: main}, stored.text)


def _folder(address: str, family: str) -> Path:
    """Returns the folder of an address; the dual encoders that ship with the package have the names of their folders."""
    shipped = {path.name: path for path in (scorer_dir(), shared_text_encoder() / "dual_encoder")}
    if family == "align" and address in shipped and not Path(address).exists():
        return shipped[address]
    return find(address)


def _run(address: str, run: TrainedRun, family: str) -> Source:
    _refuse_other(address, run.family, family)
    if family == "align":
        dual = load_dual_encoder(run.folder)
        return _dual_encoder(address, run.folder, family, dual, run)
    text = load_encoder(run.folder / "text") if (run.folder / "text").is_dir() else None
    vocabulary = read_utf8(run.folder / VOCABULARY) if family == "reader" else None
    return Source(run.folder, address, run.manifest, _parts(run, family), text, vocabulary)


def _parts(run: TrainedRun, family: str) -> dict[str, Any]:
    parts = {n: t for n, t in run.state.items() if n not in NOT_WEIGHTS and not n.endswith("optimizer")}
    return parts | {FAMILIES[family].main: run.weights}


def _dual_encoder(
    address: str, place: Path, family: str, dual: AnyDualEncoder, run: TrainedRun | None = None
) -> Source:
    _refuse_other(address, "align", family)
    if not isinstance(dual, FrozenDualEncoder):
        raise InputError(
            f"init_from {address} has maps between frozen encoders (aligner={dual.config.aligner.kind}) and no towers to start "
            "from; name a run of aligner=contrastive"
        )
    parts = {"model": dual.model.state_dict()} if run is None else _parts(run, family)
    manifest = {"config": dual.config.model_dump(mode="json")} if run is None else run.manifest
    return Source(place, address, manifest, parts, vocabulary=dual.tokenizer.json_text)


def _tokenizer(address: str, place: Path, family: str, config: dict[str, Any], tensors: Any) -> Source:
    _refuse_other(address, "vqvae", family)
    return Source(place, address, {"config": config}, {"model": tensors})


def _refuse_other(address: str, present: str, family: str) -> None:
    if present != family:
        raise InputError(
            f"init_from {address} holds a model of the family {present}, but this run trains {family}; name a model of {family}"
        )
