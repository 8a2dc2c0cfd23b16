"""Commands `t2i config`."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from t2i.cli.options import Sets
from t2i.config.load import differences, load, shipped, to_yaml
from t2i.config.load import schema as json_schema
from t2i.config.section import Section
from t2i.families import FAMILIES, config_class, family_of

config_app = typer.Typer(no_args_is_help=True, help="Look at configs without running them.")


def _open(name: str, sets: Sequence[str] = ()) -> Section:
    """A family's defaults, a shipped config, a file or a run directory."""
    if name in FAMILIES:
        return load(config_class(name), None, sets)
    return load(config_class(family_of(name)), name, sets)


@config_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped config, a file, a run or a family.")],
    sets: Sets = None,
) -> None:
    """Print the resolved config: every key with its value."""
    typer.echo(to_yaml(_open(name, sets or [])), nl=False)


@config_app.command()
def schema(family: Annotated[str, typer.Argument(metavar="FAMILY", help="E.g. cgan.")]) -> None:
    """Print the JSON schema: every key with type, range, default and meaning."""
    typer.echo(json.dumps(json_schema(config_class(family)), indent=2))


@config_app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="As in t2i config show.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
) -> None:
    """Print the keys in which two configs differ."""
    for key, left, right in differences(_open(a), _open(b)):
        typer.echo(f"{key}: {json.dumps(left, ensure_ascii=False)} -> {json.dumps(right, ensure_ascii=False)}")


@config_app.command("list")
def list_configs() -> None:
    """Print the names of the shipped configs."""
    for name in shipped():
        typer.echo(name)
