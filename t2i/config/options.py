"""Base class and fields for the options of programs. A field declares an option's type, range, default, help text and flag.

`t2i.cli.options` creates the command line from such a model; programs and the library read the object. Imports no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from t2i.config.section import Section
from t2i.errors import InputError, plain
from t2i.files import at_home

REQUIRED = ...
SEEDS = 2**63  # seeds are smaller: of larger ones the hash would read 64 bits, and two would make the same image


class Options(Section):
    """The options of one program; the docstring of a subclass is the help text of its command.

    Attributes:
        panel: heading of this class's fields in the help; "": no separate heading.

    Raises:
        InputError: a value has the wrong type or is out of range; the message names the flag and the value.
    """

    panel: ClassVar[str] = ""

    @field_validator("*", mode="after")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        """Replaces `~` in paths; a shell leaves it in `--out=~/x`."""
        return at_home(value) if isinstance(value, Path) else value

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(_explain(type(self), error)) from None


def option(
    default: Any,
    help: str,
    *,
    metavar: str | None = None,
    flag: str | None = None,
    short: str | None = None,
    commas: bool = False,
    **limits: Any,
) -> Any:
    """Declares a field that `--flag VALUE` sets.

    Args:
        flag: None: the name of the field with dashes.
        commas: True if the command line takes all values as one word, A,B.
        limits: bounds of the value for pydantic's `Field`: ge, gt, le, lt.
    """
    extra = {"metavar": metavar, "flag": flag, "short": short, "commas": commas}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def argument(help: str, *, metavar: str, default: Any = REQUIRED) -> Any:
    """Declares a field that a positional argument sets; a tuple takes all remaining arguments."""
    return Field(default, description=help, json_schema_extra={"metavar": metavar, "argument": True})


def details(field: FieldInfo) -> Mapping[str, Any]:
    """Returns the attributes of an option that pydantic does not have."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def flag_of(name: str, field: FieldInfo) -> str:
    """Returns the name of a field on the command line: `--best-of`, or `RUN` for an argument."""
    extra = details(field)
    return extra["metavar"] if extra.get("argument") else extra.get("flag") or f"--{name.replace('_', '-')}"


def split_commas(text: Any) -> Any:
    """Splits `a,b` into ("a", "b"), for a field with `commas`; returns values other than text unchanged.

    Raises:
        ValueError: there is no word.
    """
    if not isinstance(text, str):
        return text
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise ValueError("names nothing; list names with commas, or drop the option")
    return words


def _explain(cls: type[Options], error: ValidationError) -> str:
    """Returns the first problem in one line."""
    problem = error.errors(include_url=False)[0]
    if isinstance(raised := problem.get("ctx", {}).get("error"), InputError):
        return str(raised)
    what = plain(problem["type"], problem["msg"])
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if name not in cls.model_fields:
        return f"{cls.__name__} has no option {name!r}; options: {', '.join(cls.model_fields)}"
    if problem["type"] == "missing":
        return f"{flag_of(name, cls.model_fields[name])} is missing"
    return f"{flag_of(name, cls.model_fields[name])} {str(problem['input'])[:80] or repr('')}: {what}"
