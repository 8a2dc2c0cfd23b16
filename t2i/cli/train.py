"""`t2i train`: resolves the config and runs the training program."""

import json
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import typer

from t2i.cli.environment import print_address_notice
from t2i.config.load import VERIFIED_ON_RESUME, ConfigT, changed_on_resume, load, to_yaml
from t2i.config.options import Options, argument, option
from t2i.errors import InputError
from t2i.families import FAMILIES, config_class
from t2i.names import nearest


class TrainOptions(Options):
    """Train a model. The same command resumes the run.

    In an existing run directory, the run's config is used unless -c names one. All keys: t2i config schema FAMILY.
    """

    family: str = argument(f"{', '.join(FAMILIES)}.", metavar="FAMILY")
    source: str | None = option(
        None, "A shipped config (t2i config list) or a YAML file.", metavar="NAME|FILE", flag="--config", short="-c"
    )
    sets: tuple[str, ...] = option((), "Override a key, e.g. data.limit=9.", metavar="KEY=VALUE", flag="--set")
    data: str | None = option(None, "Short for --set data.address=ADDRESS.", metavar="ADDRESS")
    # not --run, which torchrun would take as an abbreviation of its --run-path
    run: Path | None = option(
        None, "Run directory; default: runs/ and the config's name.", metavar="DIR", flag="--run-dir"
    )
    dry_run: bool = option(False, "Open all, time a few steps, print config, sizes, time and memory, and stop.")

    def overrides(self) -> list[str]:
        """Returns the values of `--set`, followed by that of `--data` in the same form."""
        data = [] if self.data is None else [f"data.address={json.dumps(self.data, ensure_ascii=False)}"]
        return [*self.sets, *data]


def main(options: TrainOptions) -> None:
    name = program("train", options.family)
    run_dir = options.run or Path("runs") / (Path(options.source).stem if options.source else f"{name}-default")
    config = resolve(config_class(name), options.source, options.overrides(), run_dir)
    if options.dry_run:
        from t2i.cli.dry_run import describe

        lines = [f"# {what:<12}{text}\n" for what, text in describe(config, run_dir)]
        typer.echo("".join(lines) + to_yaml(config), nl=False)
        return
    print_address_notice(config.data.address)  # pyright: ignore[reportAttributeAccessIssue]  # every family has it
    import_module(f"t2i.train.{name}").main(config, run_dir)


def programs(kind: str) -> list[str]:
    """Returns the names of the programs in `train/`, `sample/` or `eval/` without importing them."""
    spec = find_spec(f"t2i.{kind}")
    places = spec.submodule_search_locations if spec else None
    return sorted(module.name for module in iter_modules(places or []) if not module.name.startswith("_"))


def program(kind: str, name: str) -> str:
    """Returns `name` if there is such a program; raises InputError with the nearest name otherwise."""
    known = programs(kind)
    if name not in known:
        raise InputError(
            f"t2i {kind} {name[:80]!r}: no such program{nearest(name, known)}; there are: {', '.join(known)}"
        )
    return name


def resolve(cls: type[ConfigT], source: str | None, sets: Sequence[str], run_dir: Path) -> ConfigT:
    """Returns the config of a new or resumed run: `source`, else the run's config or the defaults, with `sets` applied.

    Raises:
        InputError: the run directory is a file, or holds a run whose config differs in keys that may not change.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"run directory {run_dir} is a file; name a folder with --run-dir")
    own = run_dir / "config.yaml"
    if not own.is_file():
        return load(cls, source, sets)
    before = load(cls, own, [])
    config = load(cls, source or own, sets)
    changed = changed_on_resume(before, config, VERIFIED_ON_RESUME)
    if changed:
        rows = "".join(f"\n  {key}: {old!r} in the run, {new!r} requested" for key, old, new in changed)
        raise InputError(
            f"{run_dir} holds a run with another config; name a new folder with --run-dir, or remove the differences:{rows}"
        )
    return config
