"""`t2i data`: checks, captions, exports, filters, splits and packs images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import typer
from pydantic import BeforeValidator, model_validator

from t2i.cli.environment import print_address_notice
from t2i.config.options import SEEDS, Options, argument, option, split_commas
from t2i.errors import InputError
from t2i.files import at_home, refuse_unwritable, refuse_used
from t2i.names import counted, numbered, shown, verb

ADDRESS = "A folder of captioned images, or any data."
OUT = "A new or empty folder."


class ExportOptions(Options):
    """Write captioned images as an image folder with metadata.jsonl."""

    address: str = argument("E.g. shapes-2, or a folder.", metavar="ADDRESS")
    out: Path = argument(OUT, metavar="OUT")
    n: int | None = option(None, "Number of images per split.", metavar="N", short="-n", ge=1)
    size: int = option(64, "Pixels per side.", ge=1)
    split: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = option(
        ("train",), "Splits; several are written to one folder each.", metavar="A,B", commas=True
    )


class CheckOptions(Options):
    """Decode all images; report counts, sizes, captions, duplicates, broken files and captions shared between splits."""

    address: str = argument(ADDRESS, metavar="ADDRESS")
    sheet: Path | None = option(None, "Also write a contact sheet with captions.", metavar="FILE.png")


class FilterOptions(Options):
    """Write a folder of the images whose captions or contents pass, as links with a metadata.jsonl; the source is not changed."""

    address: str = argument(ADDRESS, metavar="ADDRESS")
    out: Path = argument(OUT, metavar="OUT")
    min_words: int = option(0, "Remove captions with fewer words.", metavar="N", ge=0)
    max_words: int | None = option(None, "Remove captions with more words.", metavar="N", ge=1)
    unique: bool = option(False, "Keep only the first of equal captions.")
    allow: Path | None = option(
        None, "Keep only captions with one of the words in this file (one word per line).", metavar="FILE"
    )
    deny: Path | None = option(None, "Remove captions with one of the words in this file.", metavar="FILE")
    near: str | None = option(None, "Keep only images near these words, captioned or not.", metavar="TEXT")
    min_score: float | None = option(
        None, "With --near: least cosine of an image and the words.", metavar="S", ge=-1, le=1
    )
    top: int | None = option(None, "With --near: keep the N nearest images.", metavar="N", ge=1)
    by: str | None = option(
        None, "With --near: an align run or clip:DIR, instead of the embedded scorer.", metavar="RUN"
    )

    @model_validator(mode="after")
    def _near_by_one_measure(self) -> Self:
        if self.near is None:
            for flag, value in {"--min-score": self.min_score, "--top": self.top, "--by": self.by}.items():
                if value is not None:
                    raise InputError(f"{flag} {value} has no effect without --near; add --near TEXT, or drop it")
        elif (self.min_score is None) == (self.top is None):
            raise InputError(f"--near {self.near!r} needs one measure: --min-score S, or --top N")
        return self


class SplitOptions(Options):
    """Divide data into new splits and write them as folders of links; equal files are put into the same split."""

    address: str = argument(ADDRESS, metavar="ADDRESS")
    out: Path = argument(OUT, metavar="OUT")
    train: float = option(0.9, "Share of train.", ge=0, le=1)
    val: float = option(0.05, "Share of val.", ge=0, le=1)
    test: float = option(0.05, "Share of test.", ge=0, le=1)
    seed: int = option(0, "Determines the split, together with the contents of each file.", ge=0, lt=SEEDS)


class PackOptions(Options):
    """Write WebDataset shards, with a table for each; the same command continues after an interruption."""

    address: str = argument(ADDRESS, metavar="ADDRESS")
    shards: Path = option(..., "Folder of the shards; new, or one to continue.", metavar="OUT")
    size: int = option(256, "Maximum of the shorter side in pixels; 0: copy files unchanged.", ge=0)
    suffix: Literal["jpg", "png"] = option("jpg", "Format of resized images.")
    pictures: int = option(1000, "Images per shard.", metavar="N", ge=1)


class CaptionOptions(Options):
    """Caption images: write a folder of links with a metadata.jsonl. The same command continues after an interruption."""

    address: str = argument("A folder of images, captioned or not, or any data.", metavar="ADDRESS")
    out: Path = argument("A new or empty folder, or one to continue.", metavar="OUT")
    by: Path = option(..., "A run of t2i train reader, or of t2i train align.", metavar="RUN")
    keep: bool = option(False, "Keep the captions of images that have some.")
    min_likelihood: float | None = option(
        None,
        "Leave out images whose caption has a lower mean log likelihood per token, in nats, e.g. -0.5.",
        metavar="X",
        le=0,
    )
    beams: int = option(1, "Number of beams; 1: greedy decoding.", metavar="N", ge=1, le=64)


def export(options: ExportOptions) -> None:
    from t2i.data import View, open_dataset
    from t2i.data.tools.export import export as export_one
    from t2i.data.tools.export import export_splits

    print_address_notice(options.address)
    _refuse_inside(options.out, options.address)
    view = View(resolution=options.size, limit=options.n)
    with _decoding():
        opened = {name: open_dataset(options.address, name, view) for name in options.split}
    if len(opened) == 1:
        export_one(opened[options.split[0]], options.out)
    else:
        export_splits(opened, options.out)
    _echo_written({name: len(dataset) for name, dataset in opened.items()}, options.out)


def check(options: CheckOptions) -> None:
    from t2i.data.tools.check import examine, gather
    from t2i.data.tools.check_report import contact_sheet, format_report, save_report
    from t2i.files import new_file

    sheet = options.sheet
    refuse_unwritable(sheet, "a PNG file", "--sheet")
    with _decoding():
        data = gather(options.address)
    report = examine(data)
    save_report(report, data)
    typer.echo(format_report(report))
    if sheet is not None and not report.problem:
        page = contact_sheet(options.address)
        with new_file(sheet) as temporary:
            page.save(temporary, "PNG")
    if report.problem:
        raise InputError(report.problem)


def filter_data(options: FilterOptions) -> None:
    from t2i.data.tools.rewrite import Rules, filter_captions, read_words

    _refuse_inside(options.out, options.address)
    words = [read_words(path) if path is not None else [] for path in (options.allow, options.deny)]
    rules = Rules(options.min_words, options.max_words, options.unique, *words)
    with _decoding() as tick:
        chosen: tuple[Any, Any] = (None, None)
        if options.near is not None:
            from t2i.hardware import device, prepare_cpu
            from t2i.retrieval.near import near_words

            refuse_used(options.out)
            prepare_cpu()
            chosen = near_words(
                options.address, options.near, options.by, options.min_score, options.top, device(), tick
            )
        images, left_out = filter_captions(options.address, options.out, rules, *chosen)
    _echo_written(images, options.out)
    for reason, count in left_out.items():
        typer.echo(f"skipped {numbered(count, reason)}")


def split_data(options: SplitOptions) -> None:
    from t2i.data.tools.rewrite import split_images

    _refuse_inside(options.out, options.address)
    shares = {"train": options.train, "val": options.val, "test": options.test}
    with _decoding():
        images = split_images(options.address, options.out, shares, options.seed)
    _echo_written(images, options.out)


def pack_data(options: PackOptions) -> None:
    from t2i.data.tools.pack import pack
    from t2i.data.tools.rewrite import open_splits

    _refuse_inside(options.shards, options.address)
    with _decoding() as tick:
        splits = open_splits(options.address)
        done = pack(
            splits,
            options.shards,
            options.size or None,
            options.suffix,
            options.pictures,
            lambda done, total: tick("packing", done, total),
        )
    before = f", {done.before:,} were packed before" if done.before else ""
    typer.echo(f"packed {counted(done.images, 'image')}{before}: {counted(done.shards, 'shard')} in {options.shards}")
    _echo_broken(done.broken)


def caption_data(options: CaptionOptions) -> None:
    from t2i.hardware import device, prepare_cpu
    from t2i.reader.captioning import write_captions
    from t2i.reader.reading import Reader

    print_address_notice(options.address)
    _refuse_inside(options.out, options.address)
    prepare_cpu()
    reader = Reader.from_pretrained(options.by, device())
    with _decoding() as tick:
        done = write_captions(
            reader,
            options.address,
            options.out,
            options.keep,
            options.min_likelihood,
            options.beams,
            lambda done, total: tick("captioning", done, total),
        )
    before = f", {done.before:,} of them in earlier calls," if done.before else ""
    typer.echo(f"wrote captions of {counted(done.written, 'image')}{before} to {options.out}")
    if done.kept:
        typer.echo(f"kept the captions of {counted(done.kept, 'image')}")
    if done.dropped:
        typer.echo(f"skipped {counted(done.dropped, 'image')} with an unlikely caption")
    _echo_broken(done.broken)


def _refuse_inside(out: Path, address: str) -> None:
    """Raises InputError if files would be written into the folder that they are made from."""
    from t2i.data import parse_address

    parsed = parse_address(address)
    source = at_home(parsed.place)
    if parsed.kind not in ("shapes", "emoji") and source.is_dir() and source.resolve() in out.resolve().parents:
        raise InputError(
            f"{shown(out)} is inside {shown(source)}, which would change the data; name a folder outside of it"
        )


@contextmanager
def _decoding() -> Iterator[Callable[[str, float, int], None]]:
    """Shows the progress of decoding images."""
    from t2i.console import shown_progress
    from t2i.data.verify import watched

    with shown_progress(" images") as tick, watched(lambda done, total: tick("decoding", done, total)):
        yield tick


def _echo_broken(broken: Sequence[tuple[str, str]], most: int = 5) -> None:
    for name, reason in broken[:most]:
        typer.echo(f"skipped {name}: {reason}")
    if len(broken) > most:
        typer.echo(f"... and {len(broken) - most:,} more")


def _echo_written(images: dict[str, int], out: Path) -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    typer.echo(f"wrote {counts} {verb(sum(images.values()), 'image', 'images')} to {out}")
