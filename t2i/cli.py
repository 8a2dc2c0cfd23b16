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
            where = str(error.filename or f"while working in {Path.cwd()}")
            if error.errno == errno.ENAMETOOLONG:
                message = f"{where[:60]}... is too long to name a file or folder; give a shorter one"
            elif error.errno in _DISK_ERRORS:
                message = f"{where}: {os.strerror(error.errno)}; free some space or name another folder"
            else:
                raise
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
cache_app = typer.Typer(no_args_is_help=True, help="Look at what is kept on disk to save time, and make it smaller.")
eval_app = typer.Typer(no_args_is_help=True, help="Score runs and folders of pictures.")
config_app = typer.Typer(no_args_is_help=True, help="Look at configs without running them.")
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")
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
    family: Annotated[str, typer.Argument(metavar="FAMILY", help=f"{', '.join(config.FAMILIES)}.")],
    source: Annotated[
        str | None,
        typer.Option("--config", "-c", metavar="NAME|FILE", help="A shipped config (t2i config list) or a YAML file."),
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

    In a run directory that exists, the run's own config is used unless -c names one. What can be set: t2i config schema FAMILY.
    """
    name = program("train", family)
    run_dir = run or Path("runs") / (Path(source).stem if source else f"{name}-default")
    overrides = [*(sets or []), *([f"data.address={json.dumps(data, ensure_ascii=False)}"] if data is not None else [])]
    resolved = resolve(config.config_class(name), source, overrides, run_dir)
    if dry_run:
        typer.echo(config.to_yaml(resolved), nl=False)
        return
    from t2i.console import warnings_of

    with warnings_of(_is_first()):
        _say_recognised(resolved.data.address)  # pyright: ignore[reportAttributeAccessIssue]  # every family has it
        import_module(f"t2i.train.{name}").main(resolved, run_dir)


def _say_recognised(address: str) -> None:
    """Tells what a bare path was taken for, on one process of a run."""
    from t2i.data import parse_address

    notice = parse_address(address).notice
    if notice and _is_first():
        typer.echo(notice, err=True)


def _is_first() -> bool:
    """Whether this is the first of torchrun's processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


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
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] PROMPTS...",
            help="A run directory or a saved pipeline, then prompts, each in quotes. Without RUN: a model that ships with t2i.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of those that ship with t2i: prior, the default, or cgan.")
    ] = None,
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
        words=list(words or []),
        model=model,
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
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A run, or pictures: a folder, a .tar or an .npz.")],
    data: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Captioned pictures to score on; default: the run's own.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="Instead of --data: pictures, their statistics (t2i eval reference) or a run."
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of a run: draw these; .txt, .jsonl or .tsv as PartiPrompts.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(metavar="NAME", help="coco-30k, cub-test, flickr30k-karpathy or shapes-heldout.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data, as val, the default, test or heldout.")] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", min=1, metavar="N", help="Pictures scored; 1,000 of a run, all of a folder."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=16, metavar="R", help="Of the real pictures; default: that of the generated ones.")
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
    dinov2: Annotated[Path | None, typer.Option(metavar="DIR", help="A DINOv2 model, for `fd-dinov2`.")] = None,
    scorer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An align run to score with instead of the embedded encoder.")
    ] = None,
    resize: Annotated[
        Literal["clean", "legacy", "torch"], typer.Option(help="How pictures reach the Inception and DINOv2.")
    ] = "clean",
    force: Annotated[bool, typer.Option("--force", help="Score even where the protocol advises against it.")] = False,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Score a run on what it was trained on; marks the scores.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be decoded; the scores say how many.")
    ] = False,
    save_features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep features here, and read those that are: .safetensors.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON of the scores; default: in the run.")] = None,
) -> None:
    """Score a run on held-out captions, or pictures against others. Also by several processes, with torchrun."""
    import_module("t2i.eval.score").main(
        target=target,
        data=data,
        against=against,
        prompts=prompts,
        protocol=protocol,
        split=split,
        n=n,
        resolution=resolution,
        metrics=[name.strip() for name in metrics.split(",") if name.strip()] if metrics is not None else None,
        seed=seed,
        truncation=truncation,
        guidance=guidance,
        settings={"temperature": temperature, "top_k": top_k, "top_p": top_p, "steps": steps},
        best_of=best_of,
        reranker=reranker,
        files={"inception": inception, "clip": clip, "dinov2": dinov2, "scorer": scorer},
        resize=resize,
        force=force,
        allow_leak=allow_leak,
        skip_broken=skip_broken,
        save_features=save_features,
        out=out,
    )


@eval_app.command()
def reference(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Captioned data, or a folder, .tar or .npz of pictures.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The statistics: .safetensors.")],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "val",
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=2, metavar="N", help="Pictures; default as in eval score.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(min=16, metavar="R", help="Of the data; without it pictures are taken as they are.")
    ] = None,
    inception: Annotated[Path | None, typer.Option(metavar="FILE", help="As in t2i eval score.")] = None,
    clip: Annotated[Path | None, typer.Option(metavar="DIR", help="As in t2i eval score.")] = None,
    dinov2: Annotated[Path | None, typer.Option(metavar="DIR", help="As in t2i eval score.")] = None,
    scorer: Annotated[Path | None, typer.Option(metavar="DIR", help="As in t2i eval score.")] = None,
    resize: Annotated[Literal["clean", "legacy", "torch"], typer.Option(help="As in t2i eval score.")] = "clean",
    embedded: Annotated[bool, typer.Option("--embedded", help="Also by the embedded encoder.")] = False,
    save_features: Annotated[
        bool, typer.Option("--save-features", help="Keep the features too: for KID, precision and the like.")
    ] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="As in t2i eval score.")] = False,
) -> None:
    """Make statistics of real pictures once, to score any number of models against."""
    import_module("t2i.eval.reference").main(
        data=data,
        split=split,
        n=n,
        resolution=resolution,
        files={"inception": inception, "clip": clip, "dinov2": dinov2, "scorer": scorer},
        resize=resize,
        embedded=embedded or scorer is not None,
        features=save_features,
        skip_broken=skip_broken,
        out=out,
    )


@eval_app.command()
def compare(
    scores: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="JSON files of t2i eval score.")],
) -> None:
    """Show score files side by side: what differs in protocol, and what more than chance explains."""
    import_module("t2i.eval.compare").main(scores)


@eval_app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of any family; a column each.")],
    data: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Captions to draw; default: those of the first run's data.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Splits of the data; default: val, and heldout where there is one."),
    ] = None,
    n: Annotated[
        int,
        typer.Option("--n", "-n", min=2, metavar="N", help="Pictures that each run draws; 12 are shown with prompts."),
    ] = 64,
    neighbours: Annotated[
        int, typer.Option(min=0, metavar="N", help="Training pictures searched for the nearest ones; 0: none.")
    ] = 20_000,
    scorer: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="What judges pictures: an align run or clip:DIR, not the embedded one."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides the noise, the same for all runs.")] = 0,
    title: Annotated[str | None, typer.Option(help="Of the page; default: the names of the runs.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page, a new file; default: report.html, of one run inside it."),
    ] = None,
) -> None:
    """Show runs side by side on one HTML page: pictures beside prompts, scores, curves, configs."""
    import_module("t2i.eval.report").main(
        runs=runs,
        data=data,
        splits=[name.strip() for name in split.split(",") if name.strip()] if split is not None else None,
        n=n,
        train=neighbours,
        scorer=scorer,
        seed=seed,
        title=title,
        out=out,
    )


@eval_app.command()
def tokenizer(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of t2i train vqvae.")],
    data: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Pictures to reconstruct; default: the run's own data.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data, as val, test or heldout.")] = "val",
    n: Annotated[int | None, typer.Option("--n", "-n", min=2, metavar="N", help="Pictures; default: 1,000.")] = None,
    inception: Annotated[Path | None, typer.Option(metavar="FILE", help="As in t2i eval score, for `rfid`.")] = None,
    clip: Annotated[Path | None, typer.Option(metavar="DIR", help="As in t2i eval score.")] = None,
    dinov2: Annotated[Path | None, typer.Option(metavar="DIR", help="As in t2i eval score.")] = None,
    scorer: Annotated[Path | None, typer.Option(metavar="DIR", help="As in t2i eval score.")] = None,
    lpips: Annotated[Path | None, typer.Option(metavar="FILE", help="VGG16 weights of torchvision, for LPIPS.")] = None,
    resize: Annotated[Literal["clean", "legacy", "torch"], typer.Option(help="As in t2i eval score.")] = "clean",
    force: Annotated[bool, typer.Option("--force", help="As in t2i eval score.")] = False,
    allow_leak: Annotated[bool, typer.Option("--allow-leak", help="As in t2i eval score.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON of the scores; default: in the run.")] = None,
) -> None:
    """Score a tokenizer: what pictures lose on the way through its tokens and back."""
    import_module("t2i.eval.tokenizer").main(
        run=run,
        data=data,
        split=split,
        n=n,
        files={"inception": inception, "clip": clip, "dinov2": dinov2, "scorer": scorer},
        lpips=lpips,
        resize=resize,
        force=force,
        allow_leak=allow_leak,
        out=out,
    )


@eval_app.command()
def captions(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL: candidate and references on each line.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of the scores; default: the table alone.")
    ] = None,
) -> None:
    """Score written captions against references: BLEU-4 and CIDEr-D."""
    import_module("t2i.eval.captions").main(file, out)


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
    if not names:
        raise InputError(f"--split {split!r} names no split; give one or several, as --split train,val")
    _say_recognised(address)
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
    from t2i.data.check import examine, gather
    from t2i.data.check_report import contact_sheet, format_report, save_report
    from t2i.data.verify import watched
    from t2i.folders import new_file

    if sheet is not None and not sheet.parent.is_dir():
        raise InputError(f"--sheet {sheet}: there is no folder {sheet.parent}; make it or name another file")
    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        here = gather(address)
    report = examine(here)
    save_report(report, here)
    typer.echo(format_report(report))
    if sheet is not None:
        page = contact_sheet(address)
        with new_file(sheet) as temporary:
            page.save(temporary, "PNG")


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
    from t2i.data.rewrite import Rules, filter_captions, read_words
    from t2i.data.verify import watched

    words = [read_words(path) if path is not None else [] for path in (allow, deny)]
    rules = Rules(min_words, max_words, unique, *words)
    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        done = filter_captions(address, out, rules)
    _tell_written(done.pictures, out)
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
    from t2i.data.rewrite import split_pictures
    from t2i.data.verify import watched

    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        done = split_pictures(address, out, {"train": train, "val": val, "test": test}, seed)
    _tell_written(done.pictures, out)


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
    from t2i.data.pack import pack
    from t2i.data.rewrite import open_splits
    from t2i.data.verify import watched

    with shown_progress(" pictures") as tick, watched(lambda done, total: tick("decoding", done, total)):
        splits = open_splits(address)
        done = pack(splits, shards, size or None, suffix, pictures, lambda done, total: tick("packing", done, total))
    before = f", {done.before:,} were packed before" if done.before else ""
    typer.echo(f"packed {done.pictures:,} pictures{before}: {done.shards:,} shards in {shards}")
    for name, reason in done.broken[:5]:
        typer.echo(f"left out: {name}: {reason}")
    if len(done.broken) > 5:
        typer.echo(f"... and {len(done.broken) - 5:,} more")


# ---- cache ---------------------------------------------------------------------------------------------------------


@cache_app.command("list")
def list_cache() -> None:
    """Print what is in the cache, what was used last first."""
    import time

    from t2i.data.cache_files import KINDS, entries
    from t2i.data.paths import cache_dir

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
    from t2i.data.cache_files import prune

    done = prune(max_size, older_than)
    typer.echo(f"removed {done.files:,} files, {done.bytes / 1e6:,.1f} MB; {done.left / 1e6:,.1f} MB stay")


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
