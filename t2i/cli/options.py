"""What several commands share."""

import os
from typing import Annotated

import typer

Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as data.limit=9.")
]


def say_recognised(address: str) -> None:
    """Tells what a bare path was taken for, on one process of a run."""
    from t2i.data import parse_address

    notice = parse_address(address).notice
    if notice and is_first():
        typer.echo(notice, err=True)


def is_first() -> bool:
    """Whether this is the first of torchrun's processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"
