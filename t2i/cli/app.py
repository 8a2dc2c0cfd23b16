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

from t2i import __version__
from t2i.cli.config import config_app
from t2i.cli.data import cache_app, data_app
from t2i.cli.environment import keep_freed_memory
from t2i.cli.options import Sets, is_first, say_recognised
from t2i.config.load import CHANGEABLE_ON_RESUME, VERIFIED_ON_RESUME, ConfigT, differences, load, to_yaml
from t2i.errors import InputError
from t2i.families import FAMILIES, config_class

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


eval_app = typer.Typer(no_args_is_help=True, help="Score runs and folders of pictures.")
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")
app.add_typer(eval_app, name="eval")
app.add_typer(config_app, name="config")


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
    family: Annotated[str, typer.Argument(metavar="FAMILY", help=f"{', '.join(FAMILIES)}.")],
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
    resolved = resolve(config_class(name), source, overrides, run_dir)
    if dry_run:
        typer.echo(to_yaml(resolved), nl=False)
        return
    from t2i.console import warnings_of

    with warnings_of(is_first()):
        say_recognised(resolved.data.address)  # pyright: ignore[reportAttributeAccessIssue]  # every family has it
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


def resolve(cls: type[ConfigT], source: str | None, sets: Sequence[str], run_dir: Path) -> ConfigT:
    """The config of a new or resumed run: `source` or the run's own or the defaults, then `sets`.

    Raises:
        InputError: the run directory is a file, or holds a run whose config differs in what it learns.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"run directory {run_dir} is a file; name a folder with --run-dir")
    own = run_dir / "config.yaml"
    if not own.is_file():
        return load(cls, source, sets)
    before = load(cls, own, [])
    wanted = load(cls, source or own, sets)
    changed = [row for row in differences(before, wanted) if row[0] not in (*CHANGEABLE_ON_RESUME, *VERIFIED_ON_RESUME)]
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


# ---- doctor, quickstart --------------------------------------------------------------------------------------------


@app.command()
def doctor() -> None:
    """Check this installation and machine; every problem comes with its fix."""
    from t2i.cli.doctor import examine

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
    import_module("t2i.cli.quickstart").main(run, minutes, family, main)
