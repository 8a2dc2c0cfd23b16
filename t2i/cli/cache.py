"""`t2i cache`: lists and prunes the cache."""

import time

import typer

from t2i.cache import KINDS, cache_dir, entries, prune
from t2i.config.options import Options, option
from t2i.names import counted


class CacheListOptions(Options):
    """List the cache; recently used entries come first."""


class PruneOptions(Options):
    """Remove files from the cache; files that are needed later are created again."""

    max_size: str | None = option(None, "Remove the least recently used files, down to e.g. 10GB.", metavar="SIZE")
    older_than: str | None = option(None, "Remove files that were not used for this long, e.g. 30d.", metavar="AGE")


def list_cache(options: CacheListOptions) -> None:
    rows = entries()
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used))
        typer.echo(
            f"{used}  {row.bytes / 1e6:>10,.1f} MB  {row.files:>6,} files  {row.kind}/{row.name}  {KINDS[row.kind]}"
        )
    typer.echo(f"{sum(row.bytes for row in rows) / 1e6:,.1f} MB in {cache_dir()}")


def prune_cache(options: PruneOptions) -> None:
    pruned = prune(options.max_size, options.older_than)
    typer.echo(
        f"removed {counted(pruned.files, 'file')}, {pruned.bytes / 1e6:,.1f} MB; {pruned.left / 1e6:,.1f} MB remain"
    )
