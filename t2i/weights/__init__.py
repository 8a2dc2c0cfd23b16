"""The pipelines that come with the package: folders of `t2i/weights` as `save_pretrained` writes them. Imports no torch."""

from pathlib import Path

import t2i

INDEX = "model_index.json"


DEFAULT = "prior"  # what draws where no run and no model is named


def shipped() -> dict[str, Path]:
    """Their folders by name."""
    return {found.parent.name: found.parent for found in sorted(Path(t2i.__file__).parent.glob(f"weights/*/{INDEX}"))}


def scorer_dir() -> Path:
    """Where the encoder lies that ships with the package."""
    return Path(t2i.__file__).parent / "weights" / "scorer"
