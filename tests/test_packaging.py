"""Contents of `pip install`: one name, `t2i`, with every program, config and shipped weight."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OUTER = {"t2i.train": "train", "t2i.sample": "sample", "t2i.eval": "eval", "t2i.configs": "configs"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def package_files() -> dict[str, Path]:
    """Returns every file that must be installed: path inside the wheel -> path in the checkout."""
    found: dict[str, Path] = {}
    for top in ("t2i", *OUTER.values()):
        for path in sorted((ROOT / top).rglob("*")):
            inside = path.relative_to(ROOT)
            hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                found[str(inside) if top == "t2i" else f"t2i/{inside}"] = inside
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the sdist of a copy of the checkout, and the wheel built from that sdist; needs no network."""
    copy = tmp_path_factory.mktemp("checkout")
    skip = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in ("t2i", *OUTER.values()):
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


def names_in_wheel(built: Path) -> list[str]:
    (wheel,) = built.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_package_list_is_what_lies_on_the_disk():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "t2i").rglob("*.py")}
    folders = {folder for folder in folders if "__pycache__" not in folder.parts}
    on_disk = {".".join(folder.parts) for folder in folders} | set(OUTER)
    assert sorted(listed) == sorted(on_disk)
    missing = [name for name in listed if not (ROOT / OUTER.get(name, name.replace(".", "/")) / "__init__.py").exists()]
    assert missing == []
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {"t2i": "t2i", **OUTER}


def test_the_version_is_said_once_more_in_the_package():
    import t2i

    assert t2i.__version__ == PROJECT["project"]["version"]


def test_the_wheel_holds_one_name_with_everything_in_it(built):
    names = names_in_wheel(built)
    assert {name.split("/")[0] for name in names} == {"t2i", f"t2i-{PROJECT['project']['version']}.dist-info"}
    held = {name for name in names if name.startswith("t2i/")}
    assert held == set(package_files())
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    for program in (ROOT / "train").glob("*.py"):
        assert f"t2i/train/{program.name}" in held


def test_the_sdist_holds_everything_too(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {str(path) for path in package_files().values()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_command_works_from_the_wheel_alone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import t2i, sys; from t2i import cli; from t2i.cli import train; from t2i.config import load; print(t2i.__file__); "
        "print(train.programs('train'), load.shipped()); sys.exit(cli.main(['--version']))"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    programs = sorted(path.stem for path in (ROOT / "train").glob("*.py") if path.stem != "__init__")
    configs = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert done.stdout.splitlines() == [
        str(tmp_path / "site" / "t2i" / "__init__.py"),
        f"{programs} {configs}",
        f"t2i {PROJECT['project']['version']}",
    ], done.stderr
