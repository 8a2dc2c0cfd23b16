"""Where t2i keeps what it can compute again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of caches: the environment variable T2I_CACHE, or ~/.cache/t2i. May not exist yet; safe to delete."""
    named = os.environ.get("T2I_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "t2i"
