"""`t2i config`: shows configs without training."""

import json
from collections.abc import Sequence

import typer

from t2i.config import load
from t2i.config.options import Options, argument, option
from t2i.config.section import Section
from t2i.families import FAMILIES, config_class, family_of


class ShowOptions(Options):
    """Print the resolved config: every key with its value."""

    name: str = argument("A shipped config, a file, a run or a family.", metavar="NAME")
    sets: tuple[str, ...] = option((), "Override a key, e.g. data.limit=9.", metavar="KEY=VALUE", flag="--set")


class SchemaOptions(Options):
    """Print the JSON schema: every key with type, range, default and description."""

    family: str = argument(f"{', '.join(FAMILIES)}.", metavar="FAMILY")


class DiffOptions(Options):
    """Print the keys in which two configs differ."""

    a: str = argument("A shipped config, a file, a run or a family.", metavar="A")
    b: str = argument("Another one.", metavar="B")


class ListOptions(Options):
    """Print the names of the shipped configs."""


def show(options: ShowOptions) -> None:
    typer.echo(load.to_yaml(_open(options.name, options.sets)), nl=False)


def schema(options: SchemaOptions) -> None:
    typer.echo(json.dumps(load.schema(config_class(options.family)), indent=2))


def diff(options: DiffOptions) -> None:
    for key, left, right in load.differences(_open(options.a), _open(options.b)):
        typer.echo(f"{key}: {json.dumps(left, ensure_ascii=False)} -> {json.dumps(right, ensure_ascii=False)}")


def list_configs(options: ListOptions) -> None:
    for name in load.shipped():
        typer.echo(name)


def _open(name: str, sets: Sequence[str] = ()) -> Section:
    """Reads a family's defaults, a shipped config, a file or the config of a run."""
    if name in FAMILIES:
        return load.load(config_class(name), None, sets)
    return load.load(config_class(family_of(name)), name, sets)
