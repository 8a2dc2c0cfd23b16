"""Creates commands from settings models: fields become arguments and options, the docstring becomes the help text.

A command is imported when it is used, so that `t2i --help` needs few modules and no torch.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from t2i.cli.environment import is_first
from t2i.config.options import Options, details, flag_of
from t2i.names import resolve


class Command(NamedTuple):
    """A command: "module:class" of its options, and "module:function" of the function that takes them."""

    options: str
    program: str


def group(help: str, commands: Mapping[str, "Command | typer.Typer"], completion: bool = False) -> typer.Typer:
    """Returns a command with subcommands, each of which is created when it is used."""

    class Commands(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name in commands and self.commands.get(cmd_name) is None:
                command = typer.main.get_command(as_typer(cmd_name, commands[cmd_name]))
                command.name = cmd_name
                self.commands[cmd_name] = command
            return super().get_command(ctx, cmd_name)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            for name in commands:  # typer suggests one of these for a mistyped name
                self.commands.setdefault(name, None)  # pyright: ignore[reportArgumentType]
            return super().resolve_command(ctx, args)

    app = typer.Typer(
        cls=Commands, help=help, no_args_is_help=True, add_completion=completion, pretty_exceptions_enable=False
    )
    app.callback()(lambda: None)
    return app


def as_typer(name: str, command: "Command | typer.Typer") -> typer.Typer:
    """Converts a command to a typer app."""
    if isinstance(command, typer.Typer):
        return command
    options: type[Options] = resolve(command.options)

    def run(**values: Any) -> None:
        from t2i.console import warnings_of

        given = options(**{key: value for key, value in values.items() if value is not None})
        with warnings_of(is_first()):
            resolve(command.program)(given)

    parameters = [_parameter(options, *named) for named in _in_order(options)]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, help=inspect.cleandoc(options.__doc__ or "").partition("\n\nAttributes:")[0])(run)
    return app


def _in_order(options: type[Options]) -> list[tuple[str, FieldInfo]]:
    """Returns fields without a panel first, then those of the panels, each in the order of the model."""
    return sorted(options.model_fields.items(), key=lambda item: _panel(options, item[0]) != "")


def _panel(options: type[Options], name: str) -> str:
    """Returns the panel of the class that declares a field."""
    owners = [cls for cls in options.__mro__ if issubclass(cls, Options) and name in cls.model_fields]
    return owners[-1].__dict__.get("panel", "")


def _parameter(options: type[Options], name: str, field: FieldInfo) -> inspect.Parameter:
    """Returns the function parameter from which typer creates the option."""
    extra = details(field)
    limits = {key: getattr(limit, key) for limit in field.metadata for key in ("ge", "le") if hasattr(limit, key)}
    shared: dict[str, Any] = {
        "help": field.description,
        "metavar": extra.get("metavar"),
        "min": limits.get("ge"),
        "max": limits.get("le"),
        "rich_help_panel": _panel(options, name) or None,
    }
    if extra.get("argument"):
        information: Any = typer.Argument(**shared)
    else:
        information = typer.Option(flag_of(name, field), *filter(None, [extra.get("short")]), **shared)
    kind = str if extra.get("commas") else _plain(field.annotation)
    if kind in (Path, list[Path]):
        information.parser = path
    default = (
        inspect.Parameter.empty if field.is_required() else _shown_default(field.default, bool(extra.get("commas")))
    )
    annotation = Annotated[kind | None if default is None else kind, information]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def path(text: str) -> Path:
    """Returns a path; an empty one would be the current folder."""
    if not text:
        raise typer.BadParameter("it is empty; name a file or folder")
    return Path(text)


def _plain(annotation: Any) -> Any:
    """Returns the type for typer: without None, and a list for a tuple."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is tuple:
        return list[_plain(kinds[0])]
    if annotation in (str, int, float, bool, Path) or get_origin(annotation) is Literal:
        return annotation
    return _plain(kinds[0])


def _shown_default(default: Any, commas: bool) -> Any:
    if not isinstance(default, tuple):
        return default
    return ",".join(default) if commas else list(default) or None
