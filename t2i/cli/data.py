"""Commands `t2i data` and `t2i cache`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from t2i.cli.options import say_recognised
from t2i.errors import InputError

data_app = typer.Typer(no_args_is_help=True, help="Export and check captioned pictures.")


cache_app = typer.Typer(no_args_is_help=True, help="Look at what is kept on disk to save time, and make it smaller.")


@data_app.command()
def export(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="E.g. shapes-2, or a folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, metavar="N", help="Pictures of each split.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = 64,
    split: Annotated[str, typer.Option(metavar="A,B", help="Several splits go into a folder each.")] = "train",
) -> None:
    """Write captioned pictures as an image folder with metadata.jsonl."""
    from t2i.data import View, open_dataset
    from t2i.data.tools.export import export as export_one
    from t2i.data.tools.export import export_splits

    names = [name.strip() for name in split.split(",") if name.strip()]
    if not names:
        raise InputError(f"--split {split!r} names no split; give one or several, as --split train,val")
    say_recognised(address)
    opened = {name: open_dataset(address, name, View(resolution=size, limit=n)) for name in names}
    if len(opened) == 1:
        export_one(opened[names[0]], out)
    else:
        export_splits(opened, out)
    typer.echo(f"wrote {', '.join(f'{len(dataset):,} {name}' for name, dataset in opened.items())} pictures to {out}")


@data_app.command()
def check(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A folder of captioned pictures, or any data.")],
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw a contact sheet with captions.")
    ] = None,
) -> None:
    """Decode everything; report counts, sizes, captions, duplicates, broken files, captions shared between splits."""
    from t2i.console import shown_progress
    from t2i.data.tools.check import examine, gather
    from t2i.data.tools.check_report import contact_sheet, format_report, save_report
    from t2i.data.verify import watched
    from t2i.files import new_file

    if sheet is not None and not sheet.parent.is_dir():
        raise InputError(f"--sheet {sheet}: there is no folder {sheet.parent}; make it or name another file")
    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        here = gather(address)
    report = examine(here)
    save_report(report, here)
    typer.echo(format_report(report))
    if sheet is not None and not report.problem:
        page = contact_sheet(address)
        with new_file(sheet) as temporary:
            page.save(temporary, "PNG")
    if report.problem:
        raise InputError(report.problem)


@data_app.command("filter")
def filter_data(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A folder of captioned pictures, or any data.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    min_words: Annotated[int, typer.Option(min=0, metavar="N", help="Captions with fewer words go.")] = 0,
    max_words: Annotated[int | None, typer.Option(min=1, metavar="N", help="Captions with more words go.")] = None,
    unique: Annotated[bool, typer.Option("--unique", help="Of equal captions the first alone stays.")] = False,
    allow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Captions without any of its words, one a line, go.")
    ] = None,
    deny: Annotated[Path | None, typer.Option(metavar="FILE", help="Captions with one of its words go.")] = None,
) -> None:
    """Write a folder of the pictures whose captions pass: links and a metadata.jsonl; the source stays as it is."""
    from t2i.console import shown_progress
    from t2i.data.tools.rewrite import Rules, filter_captions, read_words
    from t2i.data.verify import watched

    words = [read_words(path) if path is not None else [] for path in (allow, deny)]
    rules = Rules(min_words, max_words, unique, *words)
    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        done = filter_captions(address, out, rules)
    _tell_written(done.images, out)
    for why, count in done.left_out.items():
        typer.echo(f"left out: {count:,} {why}")


@data_app.command("split")
def split_data(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A folder of captioned pictures, or any data.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    train: Annotated[float, typer.Option(min=0, max=1, help="Share of the split.")] = 0.9,
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the split.")] = 0.05,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the split.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Decides the draw, with the contents of each file.")] = 0,
) -> None:
    """Draw splits anew and write them as folders of links; equal files come into one split."""
    from t2i.console import shown_progress
    from t2i.data.tools.rewrite import split_images
    from t2i.data.verify import watched

    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        done = split_images(address, out, {"train": train, "val": val, "test": test}, seed)
    _tell_written(done.images, out)


def _tell_written(pictures: dict[str, int], out: Path) -> None:
    typer.echo(f"wrote {', '.join(f'{count:,} {split}' for split, count in pictures.items())} pictures to {out}")


@data_app.command("pack")
def pack_data(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A folder of captioned pictures, or any data.")],
    shards: Annotated[Path, typer.Option(metavar="OUT", help="The folder of the shards; new, or one to go on with.")],
    size: Annotated[int, typer.Option(min=0, help="Pixels of the shorter side at most; 0: files as they are.")] = 256,
    suffix: Annotated[Literal["jpg", "png"], typer.Option(help="How pictures brought to size are written.")] = "jpg",
    pictures: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of a shard.")] = 1000,
) -> None:
    """Write WebDataset shards, a table beside each; the same command again goes on where it was stopped."""
    from t2i.console import shown_progress
    from t2i.data.tools.pack import pack
    from t2i.data.tools.rewrite import open_splits
    from t2i.data.verify import watched

    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        splits = open_splits(address)
        done = pack(splits, shards, size or None, suffix, pictures, lambda done, total: tick("packing", done, total))
    before = f", {done.before:,} were packed before" if done.before else ""
    typer.echo(f"packed {done.images:,} images{before}: {done.shards:,} shards in {shards}")
    for name, reason in done.broken[:5]:
        typer.echo(f"left out: {name}: {reason}")
    if len(done.broken) > 5:
        typer.echo(f"... and {len(done.broken) - 5:,} more")


@cache_app.command("list")
def list_cache() -> None:
    """Print what is in the cache, what was used last first."""
    import time

    from t2i.cache import KINDS, cache_dir, entries

    rows = entries()
    for row in rows:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used))
        typer.echo(
            f"{used}  {row.bytes / 1e6:>10,.1f} MB  {row.files:>6,} files  {row.kind}/{row.name}  {KINDS[row.kind]}"
        )
    typer.echo(f"{sum(row.bytes for row in rows) / 1e6:,.1f} MB in {cache_dir()}")


@cache_app.command("prune")
def prune_cache(
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Remove what was used longest ago, down to e.g. 10GB.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what was not used for so long, e.g. 30d.")
    ] = None,
) -> None:
    """Remove files of the cache; what is needed again is made again."""
    from t2i.cache import prune

    done = prune(max_size, older_than)
    typer.echo(f"removed {done.files:,} files, {done.bytes / 1e6:,.1f} MB; {done.left / 1e6:,.1f} MB stay")
