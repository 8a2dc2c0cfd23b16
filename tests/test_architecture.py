"""The rules of the house, read from the syntax trees of all files: who imports whom, what a package holds, how large it is.

CONTRIBUTING.md says why.
"""

import ast
import builtins
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2i.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("train", "sample", "eval")
# A unit may import itself and the units of lower lines; on one line they are neighbours and do not know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("t2i.train", "t2i.sample", "t2i.eval"),
    ("t2i.cli",),
    ("t2i.web",),
    ("t2i.export", "t2i.explain", "t2i.privacy", "t2i.retrieval"),
    ("t2i.report",),
    ("t2i.scoring",),
    ("t2i.pipeline",),
    ("t2i.sampling", "t2i.training", "t2i.cgan", "t2i.cvae", "t2i.vqvae", "t2i.prior"),
    ("t2i.families",),
    ("t2i.reader",),
    ("t2i.text", "t2i.extractors"),
    ("t2i.align",),
    ("t2i.data",),
    ("t2i.trained", "t2i.metrics"),
    ("t2i.checkpoint", "t2i.config"),
)
GROUND = (
    "cache",
    "console",
    "distributed",
    "errors",
    "files",
    "fonts",
    "hardware",
    "images",
    "names",
    "pretrained",
    "seeding",
)
MOST_FILES, MOST_AT_THE_TOP = 15, 16
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "sklearn",
    "gensim",
    "scipy",
    "torchmetrics",
    "pyarrow",
    "gradio",
}
# packages, or modules, that import nothing heavy at import; their submodules may
TORCH_FREE = {"t2i", "t2i.errors", "t2i.names", "t2i.families", "t2i.text", "t2i.data", "t2i.extractors", "t2i.weights"}
TORCH_FREE_PACKAGES = ("t2i.cli", "t2i.config")
FACES = {
    "t2i",
    "t2i.cli",
    "t2i.text",
    "t2i.data",
    "t2i.extractors",
    "t2i.families",
    "t2i.metrics",
    "t2i.weights",
    "t2i.vqvae.quantizers",
}
# modules that Windows has not
UNIX = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# one in each family and in each architecture, which `families` and `architectures.py` find by name
FOUND_BY_NAME = {"Config", "Generator", "Discriminator"}
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
        """Yields the dotted names that the file imports when it runs, or with `at_import_only` when it is imported."""
        for node in _reached(self.tree, functions=not at_import_only):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = self.package.split(".")[: len(self.package.split(".")) - max(node.level - 1, 0)]
                module = ".".join([*above, node.module or ""]).strip(".") if node.level else str(node.module)
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)

    def named(self) -> Iterator[str]:
        """Yields the modules that the file imports by a string, like the dicts of swap points."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.fullmatch(r"(t2i(?:\.\w+)+)(?::\w+)?", node.value)
                if found:
                    yield found[1]

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


def _reached(node: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """Yields the nodes below one that can run: no `if TYPE_CHECKING` blocks, and bodies of functions only on request."""
    for child in ast.iter_child_nodes(node):
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (inner for other in child.orelse for inner in (other, *_reached(other, functions)))
            continue
        yield child
        yield from _reached(child, functions)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def programs() -> tuple[str, ...]:
    return tuple(f"t2i.{kind}" for kind in PROGRAMS)


def floor_of(name: str) -> tuple[int, str]:
    """Returns the line of FLOORS of a module, and its unit; the ground is below all of them."""
    for number, units in enumerate(FLOORS):
        for unit in units:
            if within(name, unit):
                return number, unit
    return len(FLOORS), "ground"


# ---- the rules: each yields what breaks it -------------------------------------------------------------------------


def imports_run_downwards(module: Module) -> Iterator[str]:
    """Late imports count. Annotations and strings do not: a dict of swap points names units above it."""
    floor, unit = floor_of(module.name)
    for name in module.imports():
        if within(name, "t2i"):
            other, its = floor_of(name)
            if other < floor or other == floor and its != unit:
                yield name


def nothing_imports_a_program(module: Module) -> Iterator[str]:
    yield from (name for name in module.imports() if within(name, *programs()))
    yield from (name for name in module.imports() if within(name, *PROGRAMS))  # as top-level names of the checkout


def command_line_and_configs_import_nothing_slow(module: Module) -> Iterator[str]:
    free = module.name in TORCH_FREE or within(module.name, *TORCH_FREE_PACKAGES)
    if free or module.name.rpartition(".")[2] in ("options", "config"):
        yield from (name for name in module.imports(at_import_only=True) if name.split(".")[0] in HEAVY)


def every_file_can_be_imported_on_windows(module: Module) -> Iterator[str]:
    yield from (name for name in module.imports(at_import_only=True) if name.split(".")[0] in UNIX)


def metrics_name_no_reader_and_no_maker(module: Module) -> Iterator[str]:
    if within(module.name, "t2i.metrics"):
        yield from (name for name in module.named() if floor_of(name)[0] < floor_of("t2i.metrics")[0])


def accelerate_is_for_runs_and_programs(module: Module) -> Iterator[str]:
    if module.name != "t2i.training.accelerator" and not within(module.name, "t2i.train"):
        yield from (name for name in module.imports() if within(name, "accelerate"))


def readers_and_makers_load_no_config(module: Module) -> Iterator[str]:
    if floor_of(module.name)[1].rpartition(".")[2] in (*FAMILIES, "text", "data", "extractors"):
        yield from (name for name in module.imports() if within(name, "t2i.config.load", "t2i.config.yaml"))


def the_library_has_no_command_line_and_prints_nothing(module: Module) -> Iterator[str]:
    if within(module.name, *programs(), "t2i.cli"):
        return
    yield from (name for name in module.imports() if within(name, "typer", "click", "argparse", "sys.argv"))
    yield from ("print" for name, _ in module.calls() if name == "print")
    if module.name != "t2i.training.session":  # which notes the command in the run directory
        reads = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
        yield from ("sys.argv" for node in reads if ast.unparse(node) == "sys.argv")


def package_faces_are_empty(module: Module) -> Iterator[str]:
    if module.path.name == "__init__.py" and module.name not in FACES:
        body = [node for node in module.tree.body if not isinstance(node, ast.Expr)]
        yield from (ast.unparse(node)[:60] for node in body)


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


def models_of_others_come_through_one_door(module: Module) -> Iterator[str]:
    """Folders of transformers are checked and loaded by `t2i.pretrained`, which never runs code from them."""
    for name, call in module.calls():
        if name.endswith(".from_pretrained") and name.split(".")[0] not in (
            "TextToImagePipeline",
            "Reader",
            "cls",
            "t2i",
        ):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            if module.name != "t2i.pretrained" or given.get("trust_remote_code") != "False":
                yield f"{name} without trust_remote_code=False, or outside of t2i.pretrained"


RULES = (
    models_of_others_come_through_one_door,
    imports_run_downwards,
    nothing_imports_a_program,
    command_line_and_configs_import_nothing_slow,
    every_file_can_be_imported_on_windows,
    metrics_name_no_reader_and_no_maker,
    accelerate_is_for_runs_and_programs,
    readers_and_makers_load_no_config,
    the_library_has_no_command_line_and_prints_nothing,
    package_faces_are_empty,
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
    units = {unit for units in FLOORS for unit in units} | {f"t2i.{name}" for name in GROUND} | FACES | TORCH_FREE
    assert units <= names
    assert all(f"t2i.{family}.config" in names for family in FAMILIES)


def test_no_two_files_import_each_other_in_a_circle(modules):
    names = {module.name for module in modules}
    graph = {module.name: {name for name in module.imports() if name in names - {module.name}} for module in modules}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


def test_a_public_class_has_a_name_of_its_own(modules):
    places: dict[str, list[str]] = {}
    for module in modules:
        names = [node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
        for name in (name for name in names if not name.startswith("_")):
            places.setdefault(name, []).append(str(module.path))
    twins = {name: its for name, its in places.items() if len(its) > 1 and name not in FOUND_BY_NAME}
    assert twins == {}
    taken = {*dir(builtins), *dir(typing)} - FOUND_BY_NAME
    assert taken & places.keys() == set()


def test_a_package_can_be_seen_at_a_glance(modules):
    files: dict[str, list[str]] = {}
    for module in modules:
        files.setdefault(str(module.path.parent), []).append(module.path.name)
    top = sorted(set(files["t2i"]) - {"__init__.py"})
    assert set(GROUND) <= {name.removesuffix(".py") for name in top}
    assert len(top) <= MOST_AT_THE_TOP, top
    assert {folder: len(held) for folder, held in files.items() if folder != "t2i" and len(held) > MOST_FILES} == {}


def test_the_tests_mirror_the_library():
    rooms = {path.name for path in (ROOT / "t2i").iterdir() if path.is_dir()} | {"builders", "golden"}
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")} - {"tests"}
    assert folders <= rooms


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (imports_run_downwards, "t2i/cgan/x.py", "from ..align import dual_encoder\nfrom t2i.vqvae import losses"),
        (imports_run_downwards, "t2i/seeding.py", "from t2i import checkpoint"),
        (imports_run_downwards, "t2i/config/load.py", "from t2i.data import View"),
        (imports_run_downwards, "t2i/data/x.py", "def f():\n    from t2i.training.run import Run"),
        (imports_run_downwards, "t2i/metrics/x.py", "from t2i.align.dual_encoder import DualEncoder"),
        (imports_run_downwards, "t2i/scoring/x.py", "from t2i.report.page import make_report"),
        (nothing_imports_a_program, "t2i/pipeline.py", "def f():\n    from t2i.train import cgan"),
        (nothing_imports_a_program, "train/cgan.py", "from . import align"),
        (nothing_imports_a_program, "t2i/pipeline.py", "import sample.images"),
        (
            command_line_and_configs_import_nothing_slow,
            "t2i/cli/app.py",
            "try:\n    import torch.nn\nexcept ImportError:\n    pass",
        ),
        (command_line_and_configs_import_nothing_slow, "t2i/text/__init__.py", "from transformers import AutoModel"),
        (command_line_and_configs_import_nothing_slow, "t2i/scoring/options.py", "import torch"),
        (every_file_can_be_imported_on_windows, "t2i/training/directory.py", "import fcntl"),
        (metrics_name_no_reader_and_no_maker, "t2i/metrics/__init__.py", "EXTRACTORS = {'a': 't2i.align.frozen:load'}"),
        (accelerate_is_for_runs_and_programs, "t2i/cgan/x.py", "from accelerate.utils import tqdm"),
        (readers_and_makers_load_no_config, "t2i/cgan/x.py", "from t2i.config.load import load"),
        (the_library_has_no_command_line_and_prints_nothing, "t2i/cgan/x.py", "print('loss')"),
        (the_library_has_no_command_line_and_prints_nothing, "t2i/cgan/x.py", "import sys\nx = sys.argv[1]"),
        (package_faces_are_empty, "t2i/cgan/__init__.py", "from t2i.cgan.architectures import build"),
        (
            models_of_others_come_through_one_door,
            "t2i/text/x.py",
            "AutoModel.from_pretrained('a', trust_remote_code=False)",
        ),
        (models_of_others_come_through_one_door, "t2i/pretrained.py", "AutoTokenizer.from_pretrained('a')"),
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
        (command_line_and_configs_import_nothing_slow, "t2i/cli/app.py", "def f():\n    import torch"),
        (imports_run_downwards, "t2i/cgan/x.py", "from t2i.cgan import losses\nfrom t2i.align import frozen"),
        (
            imports_run_downwards,
            "t2i/seeding.py",
            "if TYPE_CHECKING:\n    from t2i.pipeline import TextToImagePipeline",
        ),
        (imports_run_downwards, "t2i/config/load.py", "from t2i.config import yaml\nfrom t2i.errors import InputError"),
        (accelerate_is_for_runs_and_programs, "train/cgan.py", "from accelerate import Accelerator"),
        (readers_and_makers_load_no_config, "t2i/cgan/config.py", "from t2i.config.section import Section"),
        (package_faces_are_empty, "t2i/cgan/__init__.py", '"""The GAN."""'),
        (
            models_of_others_come_through_one_door,
            "t2i/pretrained.py",
            "x.from_pretrained('a', trust_remote_code=False)",
        ),
        (models_of_others_come_through_one_door, "sample/x.py", "TextToImagePipeline.from_pretrained('a')"),
        (nothing_is_unpickled_and_no_foreign_code_runs, "t2i/x.py", "torch.load('a', weights_only=True)"),
    ],
)
def test_no_rule_sees_what_is_allowed(rule, path, source):
    assert list(rule(Module(Path(path), source))) == []
