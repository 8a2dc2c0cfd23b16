"""Explains config errors: the key, the problem, the value, its origin, and the nearest valid key."""

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from t2i.config.section import Stray
from t2i.config.upgrade import FIXED
from t2i.config.yaml import KeyPath
from t2i.errors import InputError, plain


class ConfigError(InputError):
    """All problems of a config, one line each: key, problem, value, origin, nearest valid key."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple("".join(c if c.isprintable() else "?" for c in problem) for problem in problems)
        many = f"{len(problems)} errors in the config:\n  " + "\n  ".join(self.problems)
        super().__init__(many if len(problems) > 1 else self.problems[0])


Origins = dict[KeyPath, str]


def describe(cls: type[BaseModel], error: ValidationError, tree: dict[str, Any], origins: Origins) -> list[str]:
    """Returns one line per key; the problems of a union's alternatives are joined."""
    problems: dict[KeyPath, list[str]] = {}
    tails: dict[KeyPath, str] = {}
    for detail in _with_strangers(cls, error.errors(include_url=False)):
        path = _path_of(detail, tree)
        what, tail = _explain(cls, detail, path)
        if what not in problems.setdefault(path, []):
            problems[path].append(what)
        above = (origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins)
        below = (origin for key, origin in origins.items() if key[: len(path)] == path)
        origin = next(chain(above, below), None) if path else None
        single = detail["type"] != "missing" and not isinstance(detail["input"], dict)
        tails[path] = (got(detail["input"], origin) if single else f" ({origin})" if origin else "") + tail
    return [f"{'.'.join(path) or 'config'}: {' or '.join(whats)}{tails[path]}" for path, whats in problems.items()]


def _with_strangers(cls: type[BaseModel], details: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Adds the unknown keys of sections whose kind is unknown too, since pydantic does not check these sections."""
    for detail in details:
        yield detail
        if detail["type"].startswith("union_tag") and isinstance(detail["input"], dict):
            known = _keys_at(cls, tuple(map(str, detail["loc"])))
            for key in detail["input"].keys() - set(known):
                loc, value = (*detail["loc"], key), detail["input"][key]
                yield ErrorDetails(type="extra_forbidden", loc=loc, msg="", input=value)


def _path_of(detail: ErrorDetails, tree: Any) -> KeyPath:
    """Returns the keys that the user wrote: pydantic's location without the names of a union's alternatives."""
    path: list[str] = []
    for part in detail["loc"]:
        if isinstance(tree, dict) and part in tree or isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]  # pyright: ignore[reportArgumentType, reportCallIssue]
            path.append(str(part))
    if detail["type"].startswith("union_tag"):
        return (*path, detail.get("ctx", {})["discriminator"].strip("'"))
    return (*path, str(detail["loc"][-1])) if detail["type"] == "missing" else tuple(path)


def _explain(cls: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    """Returns the problem, and the text to print after the value, for one of pydantic's errors."""
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(cls, detail, path)
    if kind == "union_tag_invalid":
        context = detail.get("ctx", {})
        *most, last = context["expected_tags"].split(", ")
        return f"must be {', '.join(most)} or {last}, got {shown(context['tag'])}", ""
    if kind == "missing":
        return "missing, and it has no default", ""
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a section with the keys {', '.join(_keys_at(cls, path)) or '...'}", ""
    what = plain(kind, detail["msg"])
    if kind in ("tuple_type", "list_type"):
        return _list_of(cls, path, value)
    if kind == "literal_error" and not isinstance(value, Stray):
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", detail.get("ctx", {})["expected"]), 1)
        return what, f"; did you mean {close[0]}?" if close else ""
    if kind == "string_type" and isinstance(value, int | float):
        return what, "; put text in quotes"
    if isinstance(value, Stray):
        return f"{what}, not a boolean", ""
    return what, ""


def _list_of(cls: type[BaseModel], path: KeyPath, value: Any) -> tuple[str, str]:
    """Explains a value that must be a list, with the words that may be in it if they are known."""
    words = [str(word) for word in _literals(_annotation(cls, path))]
    what = f"must be a list of {', '.join(words)}" if words else "must be a list"
    if value is None:
        return what, "; write [] for none"
    if isinstance(value, dict):
        what, value = f"{what}, and has no keys below it", ""
    meant = difflib.get_close_matches(str(value), words, 1) or words[:2] or ([shown(value)] if value else [])
    return what, f"; write [{', '.join(meant)}]" if meant else ""


def _annotation(cls: type[BaseModel], path: KeyPath) -> Any:
    """Returns the type of a key."""
    field = cls.model_fields.get(path[0])
    if field is None or len(path) == 1:
        return None if field is None else field.annotation
    below = (_annotation(section, path[1:]) for section in _sections(field.annotation))
    return next((found for found in below if found is not None), None)


def _literals(annotation: Any) -> Iterator[Any]:
    """Yields the values of the literals in an annotation such as `tuple[Literal["a", "b"], ...]`."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _literals(part)


def _unknown(cls: type[BaseModel], detail: ErrorDetails, path: KeyPath) -> tuple[str, str]:
    """Explains an unknown key: one that was removed, one of another kind of section, or a misspelt one."""
    family = cls.model_fields.get("family")
    fixed = FIXED.get(family.default, {}) if family is not None else {}
    key = ".".join(path)
    if key in fixed:
        return "is no longer a key", f"; it is now always {shown(fixed[key])}, remove it"
    if path[-1] in _keys_at(cls, path[:-1]):
        return f"has no effect on {detail['loc'][-2]}", "; remove it, or choose another kind"
    return "unknown key", _suggestion(cls, path)


# names that other packages use -> config keys of t2i
USUAL_NAMES = {
    "lr": "learning_rate",
    "batch_size": "train_batch_size",
    "batch": "train_batch_size",
    "steps": "max_train_steps",
    "max_steps": "max_train_steps",
    "num_steps": "max_train_steps",
    "iterations": "max_train_steps",
    "epochs": "max_train_steps",
    "num_epochs": "max_train_steps",
    "minutes": "max_train_minutes",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "precision": "mixed_precision",
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "amp": "mixed_precision",
    "save_steps": "checkpointing_steps",
    "save_every": "checkpointing_steps",
    "eval_steps": "validation_steps",
    "wandb": "report_to",
    "logger": "report_to",
    "image_size": "data.resolution",
    "img_size": "data.resolution",
    "size": "data.resolution",
    "resolution": "data.resolution",
    "dataset": "data.address",
    "data_dir": "data.address",
    "data_path": "data.address",
}


def _suggestion(cls: type[BaseModel], path: KeyPath) -> str:
    """Suggests the nearest key: a sibling, or the same word in another section."""
    if "." in path[-1]:
        return "; dots separate sections only in --set; in YAML write the section and indent its keys"
    siblings = _keys_at(cls, path[:-1])
    everywhere = [".".join(key) for key in _all_keys(cls)]
    usual = USUAL_NAMES.get(path[-1].lower())
    if usual in everywhere:
        return f"; did you mean {usual}?"
    close = difflib.get_close_matches(path[-1], siblings, 1)
    if close:
        return f"; did you mean {'.'.join((*path[:-1], close[0]))}?"
    same = [key for key in everywhere if key.rpartition(".")[2] == path[-1]]
    above = [".".join(path[:n]) for n in range(1, len(path))]
    close = same or difflib.get_close_matches(".".join(path), [key for key in everywhere if key not in above], 1)
    return f"; did you mean {close[0]}?" if close else f"; keys here: {', '.join(siblings)}"


def _all_keys(cls: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name in cls.model_fields:
        yield (*prefix, name)
        for section in _sections(cls.model_fields[name].annotation):
            yield from _all_keys(section, (*prefix, name))


def _keys_at(cls: type[BaseModel], path: KeyPath) -> list[str]:
    return list(dict.fromkeys(key[-1] for key in _all_keys(cls) if key[:-1] == path))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the models in an annotation such as `Data`, `Data | None` or `Annotated[A | B, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def got(value: Any, origin: str | None) -> str:
    return f", got {shown(value)}" + (f" ({origin})" if origin else "")


def shown(value: Any) -> str:
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else repr(value)
    return text if text is not None and len(text) <= 80 else f"{str(text)[:77]}..."
