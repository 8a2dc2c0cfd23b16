"""Settings models of the programs. An option is one field: type, range, default, help text and flag.

`t2i.cli.options` makes the command line from such a model; the program and the library read the object. Imports no torch.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo

from t2i.config.section import Section
from t2i.errors import InputError

REQUIRED = ...


class Options(Section):
    """The options of one program; the docstring of a subclass is the help text of its command.

    Attributes:
        panel: heading of the fields of this class in the help; "": none of their own.

    Raises:
        InputError: a value has another type or is out of range; the message names the flag and the value.
    """

    panel: ClassVar[str] = ""

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
    """A field that `--flag VALUE` sets.

    Args:
        flag: None: the name of the field with dashes.
        commas: the command line takes one word, A,B, for all values.
        limits: of the value, as pydantic's `Field` takes them: ge, gt, le, lt.
    """
    extra = {"metavar": metavar, "flag": flag, "short": short, "commas": commas}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def argument(help: str, *, metavar: str, default: Any = REQUIRED) -> Any:
    """A field that a word without a flag sets; a tuple takes all words that are left."""
    return Field(default, description=help, json_schema_extra={"metavar": metavar, "argument": True})


def details(field: FieldInfo) -> Mapping[str, Any]:
    """Attributes of an option that pydantic does not have."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def flag_of(name: str, field: FieldInfo) -> str:
    """A field as the user types it: `--best-of`, or `RUN` for an argument."""
    noted = details(field)
    return noted["metavar"] if noted.get("argument") else noted.get("flag") or f"--{name.replace('_', '-')}"


def split_commas(text: Any) -> Any:
    """`a,b` -> ("a", "b"), for a field with `commas`; values that are no text stay."""
    return tuple(word.strip() for word in text.split(",") if word.strip()) if isinstance(text, str) else text


def _explain(cls: type[Options], error: ValidationError) -> str:
    """The first problem in one line."""
    problem = error.errors(include_url=False)[0]
    if isinstance(raised := problem.get("ctx", {}).get("error"), InputError):
        return str(raised)
    what = re.sub(r"^Input should", "must", problem["msg"])
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if name not in cls.model_fields:
        return f"{cls.__name__} has no option {name!r}; options: {', '.join(cls.model_fields)}"
    if problem["type"] == "missing":
        return f"{flag_of(name, cls.model_fields[name])} is missing; give it"
    return f"{flag_of(name, cls.model_fields[name])} {str(problem['input'])[:80]}: {what}"
