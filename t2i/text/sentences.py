"""The rules that a folder of sentence-transformers has beside its tower: pooling, length limit, lower case."""

from pathlib import Path
from typing import Any, NamedTuple

from t2i.errors import InputError
from t2i.files import check_file, read_json

# names of the switches in 1_Pooling/config.json without `pooling_mode_` -> our rule (t2i.text.pretrained.POOLINGS)
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
    tower: Path  # the folder of transformers
    pooling: tuple[str, ...]  # rules whose vectors are joined; with `unit` last where the result is normalised
    max_tokens: int | None
    lower_case: bool


def read_rules(root: Path) -> SentenceRules | None:
    """The rules of a folder as sentence-transformers writes it; None: it is a plain folder of transformers.

    Raises:
        InputError: a damaged file, or a part that is not read here.
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
                f"{root} has a module {kind} of sentence-transformers, which is not read here; take it out of modules.json "
                "for the vectors before it, or name another folder"
            )
    settings: dict[str, Any] = {}
    for file in sorted(tower.glob("sentence_*_config.json")):
        settings |= _read(file)
    limit, lower = settings.get("max_seq_length"), settings.get("do_lower_case", False)
    if not (limit is None or type(limit) is int and limit > 0) or not isinstance(lower, bool):
        raise InputError(
            f"{tower}: max_seq_length={limit!r}, do_lower_case={lower!r} are no limit and no switch; mend them"
        )
    return SentenceRules(tower, tuple(pooling), limit, lower)


def _modules(root: Path) -> list[tuple[str, Path]]:
    """Kinds and folders of the modules in order; without a list of them, the folders that are named as such."""
    if not (root / "modules.json").exists():
        folders = sorted(path for path in root.glob("[0-9]_*") if path.is_dir())
        return [(path.name.partition("_")[2], path) for path in folders]
    check_file(root / "modules.json", _SETTINGS_BYTES)
    listed = read_json(root / "modules.json")
    try:
        found = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{root / 'modules.json'} lists no modules of sentence-transformers; download it again"
        ) from error
    for _, name in found:
        if Path(name).name != name:
            raise InputError(
                f"{root / 'modules.json'} names {name!r}, which is outside of the folder; download it again"
            )
    return [(kind, root / name) for kind, name in found]


def _pooling(file: Path) -> list[str]:
    config = _read(file)
    named = config.get("pooling_mode")  # as newer versions write it
    if named is not None:
        words = [named] if isinstance(named, str) else named
        known = {name.removesuffix("_tokens").removesuffix("_token"): rule for name, rule in _POOLINGS.items()}
        found = [known.get(word) for word in words] if isinstance(words, list) else [None]
    else:
        found = [rule for name, rule in _POOLINGS.items() if config.get(f"pooling_mode_{name}") is True]
    if not found or None in found:
        raise InputError(f"{file} names no rule of pooling that is read here ({', '.join(_POOLINGS)}); mend it")
    return [rule for rule in found if rule]


def _read(file: Path) -> dict[str, Any]:
    check_file(file, _SETTINGS_BYTES)
    found = read_json(file)
    if not isinstance(found, dict):
        raise InputError(f"{file} holds no settings; download it again")
    return found
