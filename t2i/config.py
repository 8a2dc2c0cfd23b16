"""YAML + `--set a.b=c` -> frozen pydantic models, with every error reported at once. Imports no torch."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from t2i import yaml_text
from t2i.errors import InputError
from t2i.yaml_text import KeyPath

# family -> "module:class" of its config, in a file that imports no torch. A new family is one line here.
FAMILIES: dict[str, str] = {
    "cgan": "t2i.cgan.config:Config",
    "align": "t2i.align.config:Config",
    "prior": "t2i.prior.config:Config",
    "vqvae": "t2i.vqvae.config:Config",
}

# What may differ between a run and its resumption: how long it is, how it is watched and where it is computed, never what
# is learned. Of what only rounds sums otherwise (device, mixed_precision, compile) `Run.resume` warns.
CHANGEABLE_ON_RESUME: tuple[str, ...] = (
    "max_train_steps",
    "max_train_minutes",
    "dataloader_num_workers",
    "device",
    "mixed_precision",
    "compile",
    "report_to",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "validation_steps",
    "log_steps",
    "logging_seconds",
)

MAX_BYTES = 1_000_000


class Section(BaseModel):
    """A part of a config: frozen, no unknown keys, defaults validated too; no boolean passes for another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def kept(cls, values: Any) -> Self:
        """The config that is kept with trained weights, for a reader that would take any odd one for damage.

        Raises:
            InputError: it has keys that this version does not know, so a newer one wrote it.
            ValidationError: it is damaged otherwise.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            newer = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "extra_forbidden"]
            if not newer:
                raise
            raise InputError(
                f"the config kept with the model has {', '.join(newer[:3])}, which this version does not know: a newer t2i "
                "wrote it; install that"
            ) from None

    @model_validator(mode="before")
    @classmethod
    def _refuse_stray_booleans(cls, values: Any) -> Any:
        # pydantic turns `seed: true` into 1 without a word
        if not isinstance(values, dict):
            return values
        fields = {key: field for key, field in cls.model_fields.items() if not _admits_bool(field.annotation)}
        return {key: _marked(value) if key in fields else value for key, value in values.items()}


class _Stray:
    """A boolean where no boolean may stand: no type accepts it, and messages show it as it was."""

    def __init__(self, value: bool):
        self.value = value

    def __repr__(self) -> str:
        return str(self.value).lower()


def _marked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return _Stray(value) if isinstance(value, bool) else value


def _admits_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or isinstance(annotation, bool) or any(map(_admits_bool, get_args(annotation)))


class ConfigError(InputError):
    """All that is wrong with a config, one line an error: key, what, value, where it came from, nearest valid key."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple("".join(c if c.isprintable() else "?" for c in problem) for problem in problems)
        many = f"{len(problems)} errors in the config:\n  " + "\n  ".join(self.problems)
        super().__init__(many if len(problems) > 1 else self.problems[0])


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load(cls: type[ConfigT], source: Path | str | None, sets: Sequence[str] = ()) -> ConfigT:
    """Reads one config.

    Args:
        cls: the model that decides keys, types, ranges and defaults.
        source: a YAML file, a folder that holds `config.yaml`, or the name of a shipped config; None: defaults only.
        sets: `a.b=c` overrides, later ones win; `c` is read as YAML, so `null`, `[1, 2]` and `true` mean what they say.

    Raises:
        ConfigError: with all problems of file, overrides and values together.
    """
    tree, origins, problems = _read(source) if source is not None else ({}, {}, [])
    for override in sets:
        problems += _override(tree, origins, override)
    family = cls.model_fields.get("family")
    if family is not None and "family" in tree and tree["family"] not in get_args(family.annotation):
        wanted = ", ".join(map(str, get_args(family.annotation)))
        raise ConfigError([f"family: must be {wanted}{_got(tree['family'], origins.get(('family',)))}"])
    try:
        config = cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems + _describe(cls, error, tree, origins)) from None
    if problems:
        raise ConfigError(problems)
    return config


def config_class(family: str) -> type[Section]:
    """The config model of one family; InputError names the nearest family."""
    if family not in FAMILIES:
        raise InputError(f"family {family!r} is unknown{_nearest(family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[family].partition(":")
    return getattr(import_module(module), attribute)


def family_of(source: Path | str) -> str:
    """The `family:` that a config file, run or shipped config names."""
    tree, _, problems = _read(source)
    if problems:
        raise ConfigError(problems)
    if not isinstance(tree.get("family"), str):
        raise ConfigError([f"family: missing in {source}; add a line `family: {' | '.join(FAMILIES)}`"])
    return tree["family"]


def shipped() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("t2i.configs").iterdir() if _is_yaml(entry.name))


def to_yaml(config: BaseModel) -> str:
    """The resolved config; `load` reads the same config back from it."""
    return yaml_text.dump(config.model_dump(mode="json"))


def flat(config: BaseModel) -> dict[str, Any]:
    """Every value by its dotted key, in the order of the model; lists count as one value."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


def differences(a: BaseModel, b: BaseModel) -> list[tuple[str, Any, Any]]:
    """(key, value in a, value in b) where two configs differ; a key of one alone (in an optional section) has None."""
    left, right = flat(a), flat(b)
    keys = [*left, *(key for key in right if key not in left)]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def schema(cls: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a config: types, ranges, defaults and the description of every key."""
    return cls.model_json_schema()


# ---- reading -------------------------------------------------------------------------------------------------------

Origins = dict[KeyPath, str]


class _Read(NamedTuple):
    tree: dict[str, Any]
    origins: Origins
    problems: list[str]


def _read(source: Path | str) -> _Read:
    name, text = _text_of(source)
    try:
        value, lines, problems = yaml_text.parse(text, name)
    except InputError as error:
        raise ConfigError([str(error)]) from error
    if not isinstance(value, dict | None):
        raise ConfigError([f"{name}: must hold `key: value` lines, got {type(value).__name__} {_shown(value)}"])
    return _Read(value or {}, {path: f"{name} line {line}" for path, line in lines.items()}, problems)


def _text_of(source: Path | str) -> tuple[str, str]:
    """(name for messages, text) of a file, a folder with config.yaml or a shipped config."""
    path = Path(source) / "config.yaml" if os.path.isfile(Path(source) / "config.yaml") else Path(source)
    name = str(path)
    if not os.path.isfile(path):
        known = shipped()
        name = str(source).removesuffix(".yaml")
        if name not in known:
            near = _nearest(name, known)
            raise ConfigError(
                [f"config {_shown(str(source))} is no file and no shipped config{near}; shipped: {', '.join(known)}"]
            )
        path = files("t2i.configs") / f"{name}.yaml"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError([f"{name}: over {MAX_BYTES:,} bytes, which is no config; name a small YAML file"])
        return name, data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read ({error.strerror or error})"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{name}: is not UTF-8 text, so it is no YAML file"]) from error


def _override(tree: dict[str, Any], origins: Origins, override: str) -> list[str]:
    """Writes one `a.b=c` into the tree; returns what is wrong with it."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        return [f"--set {override}: must read key=value, as in --set seed=1 or --set data.resolution=64"]
    try:
        value, _, problems = yaml_text.parse(text, f"--set {key}")
    except InputError as error:
        return [f"{error}, got {_shown(text)}; put the value in quotes"]
    section = tree
    for i, part in enumerate(path[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return [f"{key}: {'.'.join(path[:i])} is no section but {_shown(section)} (--set {override})"]
    section[path[-1]] = value
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]
    origins[path] = f"--set {override if len(override) <= 80 else override[:77] + '...'}"
    return problems


# ---- describing what is wrong --------------------------------------------------------------------------------------


def _describe(cls: type[BaseModel], error: ValidationError, tree: dict[str, Any], origins: Origins) -> list[str]:
    """One line a key; the alternatives of a union are joined."""
    found: dict[KeyPath, list[str]] = {}
    tails: dict[KeyPath, str] = {}
    for detail in error.errors(include_url=False):
        path = _path_of(detail, tree)
        what, tail = _explain(cls, detail, path)
        if what not in found.setdefault(path, []):
            found[path].append(what)
        above = (origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins)
        below = (origin for key, origin in origins.items() if key[: len(path)] == path)
        origin = next(chain(above, below), None) if path else None
        single = detail["type"] != "missing" and not isinstance(detail["input"], dict)
        tails[path] = (_got(detail["input"], origin) if single else f" ({origin})" if origin else "") + tail
    return [f"{'.'.join(path) or 'config'}: {' or '.join(whats)}{tails[path]}" for path, whats in found.items()]


def _path_of(detail: ErrorDetails, tree: Any) -> KeyPath:
    """The keys a user wrote: pydantic's location without the names of a union's alternatives."""
    path: list[str] = []
    for part in detail["loc"]:
        if isinstance(tree, dict) and part in tree or isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]  # pyright: ignore[reportArgumentType, reportCallIssue]
            path.append(str(part))
    return (*path, str(detail["loc"][-1])) if detail["type"] == "missing" else tuple(path)


def _explain(cls: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    """(what is wrong, what follows the value) of one error of pydantic."""
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return "unknown key", _suggestion(cls, path)
    if kind == "missing":
        return "missing, and it has no default", ""
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a section with the keys {', '.join(_keys_at(cls, path)) or '...'}", ""
    what = re.sub(r"^(Value error|Assertion failed), ", "", detail["msg"]).replace("Input should", "must")
    if kind == "string_type" and value is not None:
        return what, "; put a text in quotes"
    if isinstance(value, _Stray):
        return f"{what}, not a boolean", ""
    return what, ""


def _suggestion(cls: type[BaseModel], path: KeyPath) -> str:
    """The nearest key: a sibling, or the same word in another section."""
    if "." in path[-1]:
        return "; a dot stands for a section in --set only, in YAML write the section and indent its keys"
    siblings = _keys_at(cls, path[:-1])
    close = difflib.get_close_matches(path[-1], siblings, 1)
    if close:
        return f"; did you mean {'.'.join((*path[:-1], close[0]))}?"
    everywhere = [".".join(key) for key in _all_keys(cls)]
    same = [key for key in everywhere if key.rpartition(".")[2] == path[-1]]
    close = same or difflib.get_close_matches(".".join(path), everywhere, 1)
    return f"; did you mean {close[0]}?" if close else f"; keys here: {', '.join(siblings)}"


def _all_keys(cls: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name in cls.model_fields:
        yield (*prefix, name)
        for section in _sections(cls.model_fields[name].annotation):
            yield from _all_keys(section, (*prefix, name))


def _keys_at(cls: type[BaseModel], path: KeyPath) -> list[str]:
    return list(dict.fromkeys(key[-1] for key in _all_keys(cls) if key[:-1] == path))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside `Data`, `Data | None`, `Annotated[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _nearest(word: str, words: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word, list(words), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _got(value: Any, origin: str | None) -> str:
    return f", got {_shown(value)}" + (f" ({origin})" if origin else "")


def _shown(value: Any) -> str:
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else repr(value)
    return text if text is not None and len(text) <= 80 else f"{str(text)[:77]}..."


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml") and not name.startswith(".")
