"""`t2i doctor`: finds problems of this installation and machine, and explains how to fix them."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil
from packaging.requirements import Requirement

import t2i
from t2i.config.options import Options

GIB = 1024**3
MIN_DISK_GIB = 2.0
MIN_MEMORY_GIB = 2.0
REINSTALL = "reinstall both from one place: uv pip install --reinstall torch torchvision"


class DoctorOptions(Options):
    """Check this installation and machine; for every problem, print a fix."""


class Finding(NamedTuple):
    """One line of the report; `fix` is empty if there is no problem."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


def main(options: DoctorOptions) -> None:
    findings = examine()
    for finding in findings:
        print(f"{'ok     ' if finding.ok else 'PROBLEM'} {finding.name:<12} {finding.detail}")
        if not finding.ok:
            print(f"        fix: {finding.fix}")
    if not all(finding.ok for finding in findings):
        raise SystemExit(1)


def examine() -> list[Finding]:
    """Runs every check; an exception in a check is reported as a problem."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.append(check())
        except Exception as error:
            detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            findings.append(
                Finding(check.__name__, False, detail, "fix the problem in the message, then run this again")
            )
    return findings


def python() -> Finding:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    return Finding("python", ok, f"{version} on {platform.platform()}", "" if ok else "install Python 3.11 or newer")


def packages() -> Finding:
    """Checks the version of every required library without importing it."""
    try:
        required = metadata.requires("t2i") or []
    except metadata.PackageNotFoundError:
        return Finding("packages", False, "t2i is not installed", "in the checkout: uv pip install -e .")
    wrong: list[str] = []
    versions: dict[str, str] = {}
    for line in required:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not requirement.specifier.contains(versions[name], prereleases=True):
            wrong.append(f"{name} {versions[name]} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", False, "; ".join(wrong), "uv pip install --upgrade t2i (in a checkout: -e .)")
    main = ("torch", "torchvision", "transformers", "accelerate")
    return Finding("packages", True, ", ".join(f"{name} {versions[name]}" for name in main))


def imports() -> Finding:
    """Checks `import t2i` in this folder, where a folder named t2i can hide an editable installation."""
    spec = PathFinder.find_spec("t2i", [str(Path.cwd()), *sys.path[1:]])
    package = Path(t2i.__file__)
    places = () if spec is None or spec.origin is None else (Path(spec.origin), Path(spec.origin).parent / "t2i")
    if spec is None or any(place.exists() and place.samefile(package) or place == package.parent for place in places):
        return Finding("imports", True, f"t2i from {package.parent}")
    detail = f"`import t2i` in {Path.cwd()} finds {Path.cwd() / 't2i'}, which hides the package in {package.parent}"
    return Finding("imports", False, detail, "work in another folder, or rename the folder t2i")


def device() -> Finding:
    import torch

    from t2i.hardware import allowed_cores

    cores = f"{len(allowed_cores())} CPU cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        count = torch.cuda.device_count()
        return Finding(
            "device", True, f"{count} x {name}, {memory:.0f} GiB, {bf16}, CUDA {torch.version.cuda}; {cores}"
        )
    if torch.backends.mps.is_available():
        return Finding("device", True, f"MPS; {cores}")
    detail = f"CPU, {_cpu_bf16(Path('/proc/cpuinfo'))}; {cores}"
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        return Finding("device", True, detail)
    if torch.version.cuda is None:
        return Finding("device", False, f"{detail}; there is a GPU driver, but torch is a CPU build", REINSTALL)
    fix = "check that nvidia-smi lists the GPU and CUDA_VISIBLE_DEVICES is unset; if so, update the driver"
    return Finding(
        "device", False, f"{detail}; torch (CUDA {torch.version.cuda}) finds no GPU, although there is a driver", fix
    )


def _cpu_bf16(cpuinfo: Path) -> str:
    """Returns the names of the CPU's bf16 instructions."""
    flags = set(cpuinfo.read_text(errors="replace").split()) if cpuinfo.exists() else set()
    names = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    return f"bf16 by {' and '.join(names)}" if names else "no bf16 instructions"


def operators() -> Finding:
    """Checks torchvision's compiled operators, which cannot be loaded if pip has installed a CPU torch and a CUDA torchvision.

    Only the library of operators is loaded, as importing torchvision takes seconds.
    """
    import torch

    try:
        spec = find_spec("torchvision")
        folders = spec.submodule_search_locations if spec else None
        torch.ops.load_library(str(next(Path((folders or [""])[0]).glob("_C*"))))
        kept = torch.ops.torchvision.nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.9, 0.8]), 0.5)
    except (OSError, RuntimeError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:120]
        built = f"torch {torch.__version__}, torchvision {metadata.version('torchvision')}"
        return Finding("operators", False, f"torchvision does not work with this torch: {reason} ({built})", REINSTALL)
    ok = kept.tolist() == [0]
    return Finding(
        "operators", ok, f"torchvision::nms keeps {kept.tolist()} of two equal boxes", "" if ok else REINSTALL
    )


def disk() -> Finding:
    """Checks the free space for runs and caches."""
    places = {"here": Path.cwd(), "cache": _cache()}
    free = {name: shutil.disk_usage(_existing(path)).free / GIB for name, path in places.items()}
    detail = ", ".join(f"{name} {free[name]:.1f} GiB free ({path})" for name, path in places.items())
    ok = min(free.values()) >= MIN_DISK_GIB
    fix = f"free {MIN_DISK_GIB:g} GiB, work in another folder, or set T2I_CACHE to a folder on a larger disk"
    return Finding("disk", ok, detail, "" if ok else fix)


def writable() -> Finding:
    refused: list[str] = []
    for path in (Path.cwd(), _cache()):
        try:
            with tempfile.TemporaryFile(dir=_existing(path)):
                pass
        except OSError as error:
            refused.append(f"{path} ({error.strerror})")
    if refused:
        fix = "work in a folder that you can write to, and set T2I_CACHE to such a folder"
        return Finding("writable", False, f"cannot write {', '.join(refused)}", fix)
    return Finding("writable", True, "this folder and the cache")


def _cache() -> Path:
    from t2i.cache import cache_dir  # imports torch

    return cache_dir()


def _existing(path: Path) -> Path:
    """Returns the nearest existing folder above a path."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def memory() -> Finding:
    total = psutil.virtual_memory().total / GIB
    limit = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
    words = limit.read_text().strip() if limit.exists() else "max"
    usable = min(total, int(words) / GIB) if words.isdigit() else total
    ok = usable >= MIN_MEMORY_GIB
    fix = f"give this machine or container {MIN_MEMORY_GIB:g} GiB, or lower train_batch_size"
    return Finding("memory", ok, f"{usable:.1f} GiB", "" if ok else fix)


def threads() -> Finding:
    """Checks that OpenMP threads sleep; spinning ones can be 18 times slower next to one busy process."""
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    ok = policy.lower() == "passive"
    fix = "export OMP_WAIT_POLICY=passive"
    return Finding("threads", ok, f"OMP_WAIT_POLICY={policy}", "" if ok else fix)


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    packages,
    imports,
    device,
    operators,
    disk,
    writable,
    memory,
    threads,
)
