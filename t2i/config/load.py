"""Reads YAML files and `--set a.b=c` overrides into frozen pydantic models, and reports all errors together.

Imports no torch.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from t2i import weights
from t2i.config import yaml
from t2i.config.explain import ConfigError, Origins, describe, got, shown
from t2i.errors import InputError
from t2i.names import nearest

# Keys that may change when a run is resumed: its length, its reports and its hardware, but nothing that affects what is
# learned. `Run.resume` warns about those that change how sums are rounded (device, mixed_precision,
# compile, sharding).
CHANGEABLE_ON_RESUME: tuple[str, ...] = (
    "max_train_steps",
    "max_train_minutes",
    "dataloader_num_workers",
    "device",
    "mixed_precision",
    "compile",
    "sharding",
    "activation_checkpointing",
    "report_to",
    "checkpointing_steps",
    "checkpointing_minutes",
    "checkpoints_total_limit",
    "validation_steps",
    "log_steps",
)

# Paths that may change on resume, e.g. after a move: key -> the manifest's key for the digest of the contents
VERIFIED_ON_RESUME: dict[str, str] = {
    "data.address": "data",
    "text.path": "text_digest",
    "image.path": "image_digest",
    "tokenizer.path": "tokenizer_digest",
    "guidance.path": "guide_digest",
}
# Keys that name a file or folder without a digest of its contents; another spelling of the same place is no change
PLACES = ("init_from", "validation_extractor", "loss.lpips_path", "replay.address")

MAX_BYTES = 1_000_000

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load(cls: type[ConfigT], source: Path | str | None, sets: Sequence[str] = ()) -> ConfigT:
    """Reads one config.

    Args:
        cls: the model that defines keys, types, ranges and defaults.
        source: a YAML file, a folder that holds `config.yaml`, or the name of a shipped config; None: defaults only.
        sets: overrides `a.b=c`, of which later ones win; `c` is parsed as YAML, e.g. `null`, `[1, 2]` or `true`.

    Raises:
        ConfigError: lists all problems of the file, the overrides and the values.
    """
    tree, origins, problems = read_tree(source) if source is not None else ({}, {}, [])
    for name, field in cls.model_fields.items():
        if field.discriminator is not None and isinstance(tree.get(name), str):  # a kind alone
            tree[name] = {field.discriminator: tree[name]}
    for given in sets:
        override = _of_kind(cls, given)
        problems += _override(tree, origins, override)
        _leave_other_kinds(cls, tree, origins, override)
    family = cls.model_fields.get("family")
    if family is not None and "family" in tree and tree["family"] not in get_args(family.annotation):
        allowed = ", ".join(map(str, get_args(family.annotation)))
        raise ConfigError([f"family: must be {allowed}{got(tree['family'], origins.get(('family',)))}"])
    try:
        config = cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems + describe(cls, error, tree, origins)) from None
    if problems:
        raise ConfigError(problems)
    return config


def shipped() -> list[str]:
    """Returns the names of the configs that are installed with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files("t2i.configs").iterdir() if _is_yaml(entry.name))


def to_yaml(config: BaseModel) -> str:
    """Returns the YAML text of a config, from which `load` reads the same config."""
    return yaml.dump(config.model_dump(mode="json"))


def flat(config: BaseModel) -> dict[str, Any]:
    """Returns every value by its dotted key, in the order of the model; a list is one value."""
    return dict(leaves(config.model_dump(mode="json")))


def differences(a: BaseModel, b: BaseModel) -> list[tuple[str, Any, Any]]:
    """Returns (key, value in a, value in b) for each difference; a key that one of them lacks has the value None."""
    left, right = flat(a), flat(b)
    keys = [*left, *(key for key in right if key not in left)]
    return [(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]


def changed_on_resume(before: BaseModel, now: BaseModel, verified: Collection[str]) -> list[tuple[str, Any, Any]]:
    """Returns the differences that a resumed run may not have.

    Args:
        verified: keys that the digests of contents decide.
    """
    free = (*CHANGEABLE_ON_RESUME, *verified)
    rows = [row for row in differences(before, now) if row[0] not in free]
    return [row for row in rows if not (row[0] in PLACES and _is_same_place(*row[1:]))]


def _is_same_place(a: Any, b: Any) -> bool:
    """Returns True for two spellings of one address: `x`, `./x`, `x/`, `/home/me/x`, a link to it."""
    if not (isinstance(a, str) and isinstance(b, str)) or {a, b} & weights.shipped().keys():
        return a == b
    return _place(a) == _place(b)


def _place(address: str) -> tuple[str, str, str]:
    """Returns the kind of an address, its real path, and its options."""
    location, mark, options = address.partition("?")
    kind = "".join(re.findall(r"^\w+:", location))
    return kind, os.path.realpath(os.path.expanduser(location[len(kind) :])), mark + options


def schema(cls: type[BaseModel]) -> dict[str, Any]:
    """Returns the JSON schema of a config: types, ranges, defaults and descriptions of all keys."""
    return cls.model_json_schema()


class _Tree(NamedTuple):
    tree: dict[str, Any]
    origins: Origins
    problems: list[str]


def read_tree(source: Path | str) -> _Tree:
    """Reads a config file without validating it; returns its values, where each comes from, and problems such as keys that
    occur twice.

    Raises:
        ConfigError: the file cannot be read or is not YAML.
    """
    name, text = _text_of(source)
    try:
        value, lines, problems = yaml.parse(text, name)
    except InputError as error:
        raise ConfigError([str(error)]) from error
    if not isinstance(value, dict | None):
        raise ConfigError([f"{name}: must hold `key: value` lines, got {type(value).__name__} {shown(value)}"])
    return _Tree(value or {}, {path: f"{name} line {line}" for path, line in lines.items()}, problems)


def _text_of(source: Path | str) -> tuple[str, str]:
    """Returns the name for messages and the text of a file, of a folder with config.yaml, or of a shipped config."""
    path = Path(source) / "config.yaml" if os.path.isfile(Path(source) / "config.yaml") else Path(source)
    name = str(path)
    if not os.path.isfile(path):
        known = shipped()
        name = str(source).removesuffix(".yaml")
        if name not in known:
            near = nearest(name, known)
            raise ConfigError(
                [
                    f"config {shown(str(source))} is neither a file nor a shipped config{near}; shipped: {', '.join(known)}"
                ]
            )
        path = files("t2i.configs") / f"{name}.yaml"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError([f"{name}: over {MAX_BYTES:,} bytes, too large for a config; name a YAML file"])
        return name, data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read ({error.strerror or error})"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{name}: is not UTF-8 text and therefore not YAML"]) from error


def _override(tree: dict[str, Any], origins: Origins, override: str) -> list[str]:
    """Writes one `a.b=c` into the tree; returns its problems."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        return [f"--set {override}: must read key=value, as in --set seed=1 or --set data.resolution=64"]
    try:
        value, _, problems = yaml.parse(text, f"--set {key}")
    except InputError as error:
        return [f"{error}, got {shown(text)}; put the value in quotes"]
    section = tree
    for i, part in enumerate(path[:-1], 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return [f"{key}: {'.'.join(path[:i])} is not a section but {shown(section)} (--set {override})"]
    section[path[-1]] = value
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]
    origins[path] = f"--set {override if len(override) <= 80 else override[:77] + '...'}"
    return problems


def _of_kind(cls: type[BaseModel], override: str) -> str:
    """Writes `aligner=cca`, the kind of a section alone, as `aligner.kind=cca`."""
    key, equals, text = override.partition("=")
    field = cls.model_fields.get(key.strip())
    if not equals or field is None or not isinstance(field.discriminator, str) or text.lstrip().startswith("{"):
        return override
    return f"{key.strip()}.{field.discriminator}={text}"


def _leave_other_kinds(cls: type[BaseModel], tree: dict[str, Any], origins: Origins, override: str) -> None:
    """If an override changes the kind of a section, removes the keys of the file that only the old kind has.

    `--set quantizer.kind=scalar` can thus be used with a config of another kind, while keys without effect are still refused.
    """
    name, _, key = override.partition("=")[0].strip().partition(".")
    field, section = cls.model_fields.get(name), tree.get(name)
    if field is None or field.discriminator is None or field.discriminator != key or not isinstance(section, dict):
        return
    kinds = [kind for kind in get_args(field.annotation) if kind.model_fields[key].default == section.get(key)]
    for kind in kinds:
        foreign = section.keys() - kind.model_fields.keys()
        for other in foreign:
            origin = origins.get((name, other), origins.get((name,), ""))
            if not origin.startswith("--set"):
                del section[other]
                origins.pop((name, other), None)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of a nested mapping; a list is one value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml") and not name.startswith(".")
