"""The base class of all parts of a config."""

from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from t2i.errors import InputError


class Section(BaseModel):
    """A part of a config: frozen, without unknown keys, with validated defaults; booleans are not taken for numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def kept(cls, values: Any) -> Self:
        """Validates a config that is stored with trained weights.

        Raises:
            InputError: it has unknown keys, so a newer version of t2i wrote it.
            ValidationError: it is invalid for another reason.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            newer = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] == "extra_forbidden"]
            if not newer:
                raise
            raise InputError(
                f"the config stored with the model has {', '.join(newer[:3])}, which this version does not know; install the "
                "newer t2i that wrote it"
            ) from None

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any) -> Any:
        """Marks booleans in fields of other types, as pydantic would read `seed: true` as 1, and adds kinds to unions."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for key, field in cls.model_fields.items():
            if isinstance(field.discriminator, str) and isinstance(values.get(key), str):
                values[key] = {field.discriminator: values[key]}
            elif isinstance(field.discriminator, str) and isinstance(values.get(key), dict):
                values[key] = {field.discriminator: getattr(field.default, field.discriminator)} | values[key]
        fields = {key: field for key, field in cls.model_fields.items() if not _admits_bool(field.annotation)}
        return {key: _marked(value) if key in fields else value for key, value in values.items()}


class Stray:
    """A boolean in a field of another type: no type accepts it, and messages show its value."""

    def __init__(self, value: bool):
        self.value = value

    def __repr__(self) -> str:
        return str(self.value).lower()


def _marked(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return Stray(value) if isinstance(value, bool) else value


def _admits_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or isinstance(annotation, bool) or any(map(_admits_bool, get_args(annotation)))
