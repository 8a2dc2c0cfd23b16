"""Reads the settings of a sentence-transformers folder: pooling, length limit, lower case."""

from pathlib import Path
from typing import Any, NamedTuple

from t2i.errors import InputError
from t2i.files import check_file, read_json

# names of the switches in 1_Pooling/config.json without `pooling_mode_` -> rule in t2i.text.pooling.POOLINGS
_POOLINGS = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weighted_mean",
    "lasttoken": "last",
}
_SETTINGS_BYTES = 2**20


class SentenceRules(NamedTuple):
    tower: Path  # the folder of the transformer
    pooling: tuple[str, ...]  # rules whose vectors are concatenated; ends with `unit` if the result is normalised
    max_tokens: int | None
    lower_case: bool


def read_rules(root: Path) -> SentenceRules | None:
    """Returns the settings of a sentence-transformers folder; None for a plain folder of transformers.

    Raises:
        InputError: a file is damaged, or a module is not supported.
    """
    modules = _modules(root)
    if not any(kind == "Pooling" for kind, _ in modules):
        return None
    pooling: list[str] = []
    tower = root
    for kind, place in modules:
        if kind == "Transformer":
            tower = place
        elif kind == "Pooling":
            pooling += _pooling(place / "config.json")
        elif kind == "Normalize":
            pooling.append("unit")
        else:
            raise InputError(
                f"{root} has a module {kind} of sentence-transformers, which is not supported; remove it from modules.json to "
                "use the vectors before it, or name another folder"
            )
    settings: dict[str, Any] = {}
    for file in sorted(tower.glob("sentence_*_config.json")):
        settings |= _read(file)
    limit, lower = settings.get("max_seq_length"), settings.get("do_lower_case", False)
    if not (limit is None or type(limit) is int and limit > 0) or not isinstance(lower, bool):
        raise InputError(
            f"{tower}: max_seq_length={limit!r} must be a positive integer and do_lower_case={lower!r} a boolean; correct them"
        )
    return SentenceRules(tower, tuple(pooling), limit, lower)


def _modules(root: Path) -> list[tuple[str, Path]]:
    """Returns (kind, folder) of each module in order, from modules.json or else from the names of the folders."""
    if not (root / "modules.json").exists():
        folders = sorted(path for path in root.glob("[0-9]_*") if path.is_dir())
        return [(path.name.partition("_")[2], path) for path in folders]
    check_file(root / "modules.json", _SETTINGS_BYTES)
    listed = read_json(root / "modules.json")
    try:
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{root / 'modules.json'} does not list modules of sentence-transformers; download it again"
        ) from error
    for _, name in modules:
        if Path(name).name != name:
            raise InputError(f"{root / 'modules.json'} names {name!r}, which is outside the folder; download it again")
    return [(kind, root / name) for kind, name in modules]


def _pooling(file: Path) -> list[str]:
    config = _read(file)
    modes = config.get("pooling_mode")  # the key of newer versions
    if modes is not None:
        modes = [modes] if isinstance(modes, str) else modes
        known = {name.removesuffix("_tokens").removesuffix("_token"): rule for name, rule in _POOLINGS.items()}
        rules = [known.get(mode) for mode in modes] if isinstance(modes, list) else [None]
    else:
        rules = [rule for name, rule in _POOLINGS.items() if config.get(f"pooling_mode_{name}") is True]
    if not rules or None in rules:
        raise InputError(f"{file} names no supported pooling rule ({', '.join(_POOLINGS)}); correct it")
    return [rule for rule in rules if rule]


def _read(file: Path) -> dict[str, Any]:
    check_file(file, _SETTINGS_BYTES)
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise InputError(f"{file} does not hold settings; download it again")
    return settings
