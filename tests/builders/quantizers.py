"""Settings of a quantiser of any kind."""

from typing import Any, get_args

from t2i.vqvae.config import QuantizerConfig

CLASSES = {cls.model_fields["kind"].default: cls for cls in get_args(QuantizerConfig)}


def settings_of(kind: str, **wanted: Any) -> dict[str, Any]:
    """Returns those of the settings that this kind has."""
    return {"kind": kind} | {key: value for key, value in wanted.items() if key in CLASSES[kind].model_fields}
