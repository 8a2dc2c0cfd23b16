"""`t2i cache`: what is in the cache, and how to make it smaller."""

import time

import typer

from t2i.cache import KINDS, cache_dir, entries, prune
from t2i.config.options import Options, option


class CacheListOptions(Options):
    """Print what is in the cache, last used first."""


class PruneOptions(Options):
    """Remove files of the cache; what is needed again is made again."""

    max_size: str | None = option(None, "Remove what was used longest ago, down to e.g. 10GB.", metavar="SIZE")
    older_than: str | None = option(None, "Remove what was not used for so long, e.g. 30d.", metavar="AGE")


def list_cache(options: CacheListOptions) -> None:
    rows = entries()
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used))
        typer.echo(
            f"{used}  {row.bytes / 1e6:>10,.1f} MB  {row.files:>6,} files  {row.kind}/{row.name}  {KINDS[row.kind]}"
        )
    typer.echo(f"{sum(row.bytes for row in rows) / 1e6:,.1f} MB in {cache_dir()}")


def prune_cache(options: PruneOptions) -> None:
    done = prune(options.max_size, options.older_than)
    typer.echo(f"removed {done.files:,} files, {done.bytes / 1e6:,.1f} MB; {done.left / 1e6:,.1f} MB stay")
