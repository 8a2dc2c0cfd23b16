"""Who may import whom, read from the syntax trees of all files. CONTRIBUTING.md says why."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i.config import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("train", "sample", "eval")
HEAVY = {"torch", "torchvision", "transformers", "accelerate", "sklearn", "gensim", "scipy", "torchmetrics", "pyarrow"}
TORCH_FREE = {"t2i", "t2i.cli", "t2i.config", "t2i.errors", "t2i.run_config", "t2i.yaml_text", "t2i.text", "t2i.data"}
TORCH_FREE |= {f"t2i.{family}.config" for family in FAMILIES}
BASE = {
    "t2i",
    "t2i.errors",
    "t2i.config",
    "t2i.yaml_text",
    "t2i.run_config",
    "t2i.seeding",
    "t2i.images",
    "t2i.journal",
}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


class Module:
    """One source file: its dotted name and what it imports."""

    def __init__(self, path: Path, source: str):
        parts = path.with_suffix("").parts
        parts = parts if parts[0] == "t2i" else ("t2i", *parts)
        self.path = path
        self.package = ".".join(parts[:-1])
        self.name = self.package if parts[-1] == "__init__" else ".".join(parts)
        self.tree = ast.parse(source)

    def imports(self, at_import_only: bool = False) -> Iterator[str]:
        """Dotted names imported anywhere; with `at_import_only`, those that importing this file imports."""
        for node in _at_import(self.tree) if at_import_only else ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.package.split(".")[: len(self.package.split(".")) - max(node.level - 1, 0)]
                module = ".".join([*above, node.module or ""]).strip(".") if node.level else str(node.module)
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)

    def named(self) -> Iterator[str]:
        """Modules that the file imports by a string, as the dicts of swap points do."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.fullmatch(r"(t2i(?:\.\w+)+)(?::\w+)?", node.value)
                if found:
                    yield found[1]

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (inner for other in child.orelse for inner in (other, *_at_import(other)))
            continue
        yield child
        yield from _at_import(child)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def families() -> list[str]:
    return [f"t2i.{family}" for family in FAMILIES]


def programs() -> tuple[str, ...]:
    return tuple(f"t2i.{kind}" for kind in PROGRAMS)


# ---- the rules: each yields what breaks it -------------------------------------------------------------------------


def nothing_imports_a_program(module: Module) -> Iterator[str]:
    yield from (name for name in module.imports() if within(name, *programs()))
    yield from (name for name in module.imports() if within(name, *PROGRAMS))  # as top-level names of the checkout


def command_line_and_configs_import_nothing_slow(module: Module) -> Iterator[str]:
    if module.name in TORCH_FREE:
        yield from (name for name in module.imports(at_import_only=True) if name.split(".")[0] in HEAVY)


def metrics_know_no_family(module: Module) -> Iterator[str]:
    if within(module.name, "t2i.metrics"):
        yield from (name for name in (*module.imports(), *module.named()) if within(name, *families()))


def one_family_never_imports_another(module: Module) -> Iterator[str]:
    for family in families():
        if within(module.name, family):
            others = [other for other in families() if other != family]
            yield from (name for name in (*module.imports(), *module.named()) if within(name, *others))


def accelerate_is_for_runs_and_programs(module: Module) -> Iterator[str]:
    if module.name != "t2i.accelerator" and not within(module.name, *programs()):
        yield from (name for name in module.imports() if within(name, "accelerate"))


def the_base_knows_nothing_above_it(module: Module) -> Iterator[str]:
    if module.name in BASE:
        own = {name for name in module.imports() if within(name, "t2i")}
        yield from (name for name in own if name not in BASE and name.rpartition(".")[0] not in BASE - {"t2i"})


def models_and_data_know_no_run_and_load_no_config(module: Module) -> Iterator[str]:
    if within(module.name, *families(), "t2i.text", "t2i.data", "t2i.metrics"):
        above = ("t2i.cli", "t2i.run", "t2i.journal", "t2i.pipeline", "t2i.quickstart", "t2i.yaml_text")
        for name in module.imports():
            if within(name, *above) or within(name, "t2i.config") and name not in ("t2i.config", "t2i.config.Section"):
                yield name


def the_library_has_no_command_line_and_prints_nothing(module: Module) -> Iterator[str]:
    if within(module.name, *programs(), "t2i.cli", "t2i.quickstart"):
        return
    yield from (name for name in module.imports() if within(name, "typer", "click", "argparse", "sys.argv"))
    yield from ("print" for name, _ in module.calls() if name == "print")
    if module.name != "t2i.run":  # which notes the command in the run directory
        reads = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
        yield from ("sys.argv" for node in reads if ast.unparse(node) == "sys.argv")


def nothing_is_unpickled_and_no_foreign_code_runs(module: Module) -> Iterator[str]:
    yield from (name for name in module.imports() if name.split(".")[0] in UNPICKLERS)
    for name, call in module.calls():
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code", "False") != "False":
            yield f"{name} with allow_pickle or trust_remote_code"
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"):
            yield name


RULES = (
    nothing_imports_a_program,
    command_line_and_configs_import_nothing_slow,
    metrics_know_no_family,
    one_family_never_imports_another,
    accelerate_is_for_runs_and_programs,
    the_base_knows_nothing_above_it,
    models_and_data_know_no_run_and_load_no_config,
    the_library_has_no_command_line_and_prints_nothing,
    nothing_is_unpickled_and_no_foreign_code_runs,
)


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    files = [path for folder in ("t2i", *PROGRAMS) for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Module(path.relative_to(ROOT), path.read_text("utf-8")) for path in files]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule, modules):
    broken = [f"{module.path}: {what}" for module in modules for what in dict.fromkeys(rule(module))]
    assert broken == []


def test_the_files_the_rules_speak_of_are_there(modules):
    names = {module.name for module in modules}
    assert TORCH_FREE <= names and BASE <= names
    assert all(f"t2i.{family}.config" in names for family in FAMILIES)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (nothing_imports_a_program, "t2i/pipeline.py", "def f():\n    from t2i.train import cgan"),
        (nothing_imports_a_program, "train/cgan.py", "from . import align"),
        (nothing_imports_a_program, "t2i/pipeline.py", "import sample.images"),
        (
            command_line_and_configs_import_nothing_slow,
            "t2i/cli.py",
            "try:\n    import torch.nn\nexcept ImportError:\n    pass",
        ),
        (command_line_and_configs_import_nothing_slow, "t2i/text/__init__.py", "from transformers import AutoModel"),
        (metrics_know_no_family, "t2i/metrics/x.py", "from t2i.align.model import DualEncoder"),
        (metrics_know_no_family, "t2i/metrics/__init__.py", "EXTRACTORS = {'a': 't2i.align.saved:load'}"),
        (one_family_never_imports_another, "t2i/cgan/x.py", "from ..align import model"),
        (accelerate_is_for_runs_and_programs, "t2i/cgan/x.py", "from accelerate.utils import tqdm"),
        (the_base_knows_nothing_above_it, "t2i/seeding.py", "from t2i import checkpoint"),
        (the_base_knows_nothing_above_it, "t2i/config.py", "from t2i.data import View"),
        (models_and_data_know_no_run_and_load_no_config, "t2i/cgan/x.py", "from t2i.config import load"),
        (models_and_data_know_no_run_and_load_no_config, "t2i/data/x.py", "from t2i.run import Run"),
        (the_library_has_no_command_line_and_prints_nothing, "t2i/cgan/x.py", "print('loss')"),
        (the_library_has_no_command_line_and_prints_nothing, "t2i/cgan/x.py", "import sys\nx = sys.argv[1]"),
        (nothing_is_unpickled_and_no_foreign_code_runs, "t2i/x.py", "import torch\ntorch.load('a')"),
        (nothing_is_unpickled_and_no_foreign_code_runs, "t2i/x.py", "from pickle import loads"),
        (nothing_is_unpickled_and_no_foreign_code_runs, "eval/x.py", "m.from_pretrained('a', trust_remote_code=True)"),
    ],
)
def test_each_rule_sees_what_breaks_it(rule, path, source):
    assert list(rule(Module(Path(path), source)))


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (command_line_and_configs_import_nothing_slow, "t2i/data/__init__.py", "if TYPE_CHECKING:\n    import torch"),
        (command_line_and_configs_import_nothing_slow, "t2i/cli.py", "def f():\n    import torch"),
        (one_family_never_imports_another, "t2i/cgan/x.py", "from t2i.cgan import losses"),
        (accelerate_is_for_runs_and_programs, "train/cgan.py", "from accelerate import Accelerator"),
        (
            the_base_knows_nothing_above_it,
            "t2i/config.py",
            "from t2i import yaml_text\nfrom t2i.errors import InputError",
        ),
        (models_and_data_know_no_run_and_load_no_config, "t2i/cgan/config.py", "from t2i.config import Section"),
        (
            models_and_data_know_no_run_and_load_no_config,
            "t2i/cgan/config.py",
            "from t2i.run_config import TrainConfig",
        ),
        (nothing_is_unpickled_and_no_foreign_code_runs, "t2i/x.py", "torch.load('a', weights_only=True)"),
    ],
)
def test_no_rule_sees_what_is_allowed(rule, path, source):
    assert list(rule(Module(Path(path), source))) == []
