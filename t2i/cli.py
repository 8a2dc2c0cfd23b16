"""The `t2i` command. Finds the programs by name and imports them only to run them, so `t2i --help` needs no torch.

Exit status: 0 done; 2 the input is wrong, said in one line; 85 a run stopped early and the same command resumes it;
130 interrupted. Anything else that goes wrong is a bug and shows its traceback.
"""

import difflib
import errno
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from t2i import __version__, config
from t2i.allocator import keep_freed_memory
from t2i.errors import InputError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; `argv` as in sys.argv[1:]."""
    # Spinning OpenMP threads cost a factor of 18 beside one busy neighbour; the setting is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # A short spin before sleeping: small steps on 2 free cores run 1.6 times as fast as with none (LOG.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    try:
        typer.main.get_command(app).main(argv, prog_name="t2i")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return stop.code or 0
    return 0


class _Commands(TyperGroup):
    """The top of the command tree, where mistakes of the user become one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = str(error)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            where = error.filename or f"while working in {Path.cwd()}"
            message = f"{where}: {os.strerror(error.errno)}; free some space or name another folder"
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, sample and score text-to-image generators.",
)
data_app = typer.Typer(no_args_is_help=True, help="Export and check captioned pictures.")
eval_app = typer.Typer(no_args_is_help=True, help="Score runs and folders of pictures.")
config_app = typer.Typer(no_args_is_help=True, help="Look at configs without running them.")
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
app.add_typer(config_app, name="config")

Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, as data.limit=9.")
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"t2i {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# ---- train ---------------------------------------------------------------------------------------------------------


@app.command()
def train(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="What to train, e.g. cgan or align.")],
    source: Annotated[
        str | None, typer.Option("--config", "-c", metavar="NAME|FILE", help="A shipped config or a YAML file.")
    ] = None,
    sets: Sets = None,
    data: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Short for --set data.address=ADDRESS.")] = None,
    # not --run: torchrun reads the options behind -m too, and takes that for its own --run-path
    run: Annotated[
        Path | None,
        typer.Option("--run-dir", metavar="DIR", help="Run directory; default: runs/ and the config's name."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")] = False,
) -> None:
    """Train one model. The same command again resumes the run.

    In a run directory that exists, the run's own config is used unless -c names one.
    """
    name = program("train", family)
    run_dir = run or Path("runs") / (Path(source).stem if source else f"{name}-default")
    overrides = [*(sets or []), *([f"data.address={json.dumps(data, ensure_ascii=False)}"] if data is not None else [])]
    resolved = resolve(config.config_class(name), source, overrides, run_dir)
    if dry_run:
        typer.echo(config.to_yaml(resolved), nl=False)
        return
    import_module(f"t2i.train.{name}").main(resolved, run_dir)


def programs(kind: str) -> list[str]:
    """Names of the programs in `train/`, `sample/` or `eval/`: the files that are there, none of them imported."""
    spec = find_spec(f"t2i.{kind}")
    places = spec.submodule_search_locations if spec else None
    return sorted(module.name for module in iter_modules(places or []) if not module.name.startswith("_"))


def program(kind: str, name: str) -> str:
    """`name` if there is such a program; InputError names the nearest one."""
    known = programs(kind)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(f"t2i {kind} {name[:80]!r}: no such program{hint}; there are: {', '.join(known)}")


def resolve(cls: type[config.ConfigT], source: str | None, sets: Sequence[str], run_dir: Path) -> config.ConfigT:
    """The config of a new or resumed run: `source` or the run's own or the defaults, then `sets`.

    Raises:
        InputError: the run directory is a file, or holds a run whose config differs in what it learns.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"run directory {run_dir} is a file; name a folder with --run-dir")
    own = run_dir / "config.yaml"
    if not own.is_file():
        return config.load(cls, source, sets)
    before = config.load(cls, own, [])
    wanted = config.load(cls, source or own, sets)
    changed = [row for row in config.differences(before, wanted) if row[0] not in config.CHANGEABLE_ON_RESUME]
    if changed:
        rows = "".join(f"\n  {key}: {old!r} in the run, {new!r} asked for" for key, old, new in changed)
        raise InputError(
            f"{run_dir} holds a run with another config; name a new folder with --run-dir, or drop what differs:{rows}"
        )
    return wanted


# ---- sample, eval, data --------------------------------------------------------------------------------------------


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory or a saved pipeline.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, each in quotes.")] = None,
    num_images_per_prompt: Annotated[
        int, typer.Option("--num-images-per-prompt", "-n", min=1, metavar="N", help="Pictures for each prompt.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Decides the noise; a picture does not depend on the batch.")] = 0,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="A text file with one prompt a line.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the run's own.")] = None,
    truncation: Annotated[
        float | None, typer.Option(help="Under 1: less varied, more typical pictures; default: the run's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = 64,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Output folder; default: inside the run.")] = None,
    interpolate: Annotated[
        Literal["noise", "caption"] | None, typer.Option(help="A row of pictures between two noises or two prompts.")
    ] = None,
    frames: Annotated[int, typer.Option(min=2, help="Pictures of an interpolation.")] = 8,
    temperature: Annotated[float | None, typer.Option(help="Of a prior: under 1 draws likelier codes.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of a prior: draw from the k likeliest codes.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of a prior: from the likeliest that hold this share.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of a prior of order random: parallel steps a picture.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Of a prior, on a GPU: CUDA graphs.")] = False,
    init: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a prior: a picture, parts of which are kept.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --init, of its size: what is white is drawn anew.")
    ] = None,
    keep_rows: Annotated[
        int | None, typer.Option(metavar="N", help="With --init: N rows of tokens at the top stay.")
    ] = None,
    best_of: Annotated[
        int, typer.Option(min=1, metavar="N", help="Draw N candidates for each picture and keep the best.")
    ] = 1,
    scorer: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="With --best-of: an align run or clip:DIR that chooses, not the embedded one."
        ),
    ] = None,
) -> None:
    """Draw pictures for prompts: PNG files, a manifest and a grid."""
    import_module("t2i.sample.images").main(
        run=run,
        prompts=list(prompts or []),
        num_images_per_prompt=num_images_per_prompt,
        seed=seed,
        prompts_file=prompts_file,
        guidance=guidance,
        truncation=truncation,
        batch_size=batch_size,
        out=out,
        interpolate=interpolate,
        frames=frames,
        settings={
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "steps": steps,
            "compile": compile or None,
        },
        init=init,
        mask=mask,
        keep_rows=keep_rows,
        best_of=best_of,
        scorer=scorer,
    )


@eval_app.command()
def score(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A run directory or a folder of pictures.")],
    data: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Captioned pictures to score on; default: the run's own.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Compare two folders of pictures instead.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data, as val, test or heldout.")] = "val",
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", min=1, metavar="N", help="Pictures scored; 1,000 of a run, all of a folder."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="Metrics; default: all that apply.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides noise, captions and bootstrap.")] = 0,
    truncation: Annotated[float | None, typer.Option(help="As in t2i sample.")] = None,
    guidance: Annotated[float | None, typer.Option(help="As in t2i sample.")] = None,
    temperature: Annotated[float | None, typer.Option(help="As in t2i sample.")] = None,
    top_k: Annotated[int | None, typer.Option(help="As in t2i sample.")] = None,
    top_p: Annotated[float | None, typer.Option(help="As in t2i sample.")] = None,
    steps: Annotated[int | None, typer.Option(help="As in t2i sample.")] = None,
    best_of: Annotated[int, typer.Option(min=1, metavar="N", help="As in t2i sample.")] = 1,
    reranker: Annotated[
        str | None, typer.Option(metavar="DIR", help="With --best-of: what chooses, as --scorer in t2i sample.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State dict of the FID Inception, for `fid` and `kid`.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(metavar="DIR", help="A CLIP model, for the CLIP score.")] = None,
    scorer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An align run to score with instead of the embedded encoder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Score even where the protocol advises against it.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON of the scores; default: in the run.")] = None,
) -> None:
    """Score a run on held-out captions, or one folder of pictures against another."""
    import_module("t2i.eval.score").main(
        target=target,
        data=data,
        against=against,
        split=split,
        n=n,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else None,
        seed=seed,
        truncation=truncation,
        guidance=guidance,
        settings={"temperature": temperature, "top_k": top_k, "top_p": top_p, "steps": steps},
        best_of=best_of,
        reranker=reranker,
        inception=inception,
        clip=clip,
        scorer=scorer,
        force=force,
        out=out,
    )


@eval_app.command()
def sweep(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory or a saved pipeline.")],
    guidance: Annotated[str | None, typer.Option(metavar="A,B", help="Values to try, as 1,1.5,2,3,5.")] = None,
    truncation: Annotated[str | None, typer.Option(metavar="A,B", help="Of a GAN: values to try.")] = None,
    temperature: Annotated[str | None, typer.Option(metavar="A,B", help="Of a prior: values to try.")] = None,
    top_k: Annotated[str | None, typer.Option(metavar="A,B", help="Of a prior: values to try.")] = None,
    top_p: Annotated[str | None, typer.Option(metavar="A,B", help="Of a prior: values to try.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="A,B", help="Of a prior of order random: values to try.")] = None,
    data: Annotated[str | None, typer.Option(metavar="ADDRESS", help="As in t2i eval score.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data; never one that is held out for scores.")] = "val",
    n: Annotated[int, typer.Option("--n", "-n", min=2, metavar="N", help="Pictures drawn at each setting.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Decides the noise, the same at each setting.")] = 0,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="FID Inception, for `fid` instead of the embedded encoder.")
    ] = None,
    scorer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An align run to measure with instead of the embedded encoder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Measure even where the protocol advises against it.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON of all; default: in the run.")] = None,
    make_default: Annotated[
        bool, typer.Option("--make-default", help="Draw with the best setting from now on, in this run.")
    ] = False,
) -> None:
    """Try settings of sampling: fidelity against faithfulness, as a table, JSON and a picture."""
    import_module("t2i.eval.sweep").main(
        run=run,
        values={
            "guidance": guidance,
            "truncation": truncation,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "steps": steps,
        },
        data=data,
        split=split,
        n=n,
        seed=seed,
        inception=inception,
        scorer=scorer,
        force=force,
        out=out,
        make_default=make_default,
    )


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
    from t2i.data.export import export as export_one
    from t2i.data.export import export_splits

    names = [name.strip() for name in split.split(",") if name.strip()]
    opened = {name: open_dataset(address, name, View(resolution=size, limit=n)) for name in names}
    if len(opened) == 1:
        export_one(opened[names[0]], out)
    else:
        export_splits(opened, out)
    typer.echo(f"wrote {', '.join(f'{len(dataset):,} {name}' for name, dataset in opened.items())} pictures to {out}")


@data_app.command()
def check(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of captioned pictures.")]) -> None:
    """Report counts, sizes, captions, duplicates, broken files and captions shared between splits."""
    from t2i.data.check import check as check_folder
    from t2i.data.check import format_report

    typer.echo(format_report(check_folder(folder)))


# ---- config --------------------------------------------------------------------------------------------------------


def _open(name: str, sets: Sequence[str] = ()) -> config.Section:
    """A family's defaults, a shipped config, a file or a run directory."""
    if name in config.FAMILIES:
        return config.load(config.config_class(name), None, sets)
    return config.load(config.config_class(config.family_of(name)), name, sets)


@config_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped config, a file, a run or a family.")],
    sets: Sets = None,
) -> None:
    """Print the resolved config: every key with its value."""
    typer.echo(config.to_yaml(_open(name, sets or [])), nl=False)


@config_app.command()
def schema(family: Annotated[str, typer.Argument(metavar="FAMILY", help="E.g. cgan.")]) -> None:
    """Print the JSON schema: every key with type, range, default and meaning."""
    typer.echo(json.dumps(config.schema(config.config_class(family)), indent=2))


@config_app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="As in t2i config show.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
) -> None:
    """Print the keys in which two configs differ."""
    for key, left, right in config.differences(_open(a), _open(b)):
        typer.echo(f"{key}: {json.dumps(left, ensure_ascii=False)} -> {json.dumps(right, ensure_ascii=False)}")


@config_app.command("list")
def list_configs() -> None:
    """Print the names of the shipped configs."""
    for name in config.shipped():
        typer.echo(name)


# ---- doctor, quickstart --------------------------------------------------------------------------------------------


@app.command()
def doctor() -> None:
    """Check this installation and machine; every problem comes with its fix."""
    from t2i.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{'ok     ' if finding.ok else 'PROBLEM'} {finding.name:<12} {finding.detail}")
        if not finding.ok:
            typer.echo(f"        fix: {finding.fix}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def quickstart(
    run: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Where everything goes.")] = Path(
        "runs/quickstart"
    ),
    minutes: Annotated[float, typer.Option(min=0.1, help="Training time of the generator.")] = 4.0,
    family: Annotated[Literal["cgan", "prior"], typer.Option(help="Which kind of generator.")] = "cgan",
) -> None:
    """Train, sample and score a small model on the embedded data, and write a page that shows it."""
    import_module("t2i.quickstart").main(run, minutes, family)


if __name__ == "__main__":
    sys.exit(main())
