"""Tests that hostile files run nothing, reach nothing outside, never cause a hang, and never change a result silently.

    python benchmarks/torture_files.py                     # 400 trials: about half an hour of one core
    python benchmarks/torture_files.py --share 0.1

Each trial takes something that a user may get from a stranger (a run, a saved pipeline, a data set, a model folder, a folder
of samples, scores, prompts, ...) or that is in the cache, replaces one of its files by something hostile or broken, and runs
the command that reads it. The command must give the same result as without the replacement, report the difference, or refuse
in one line.
"""

import hashlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torture_runs  # noqa: E402
from PIL import Image  # noqa: E402
from torture_runs import KEYS, judged, outcome  # noqa: E402

from builders import published_layouts  # noqa: E402
from builders.tiny_prior_run import make_prior_run  # noqa: E402
from builders.tiny_run import make_run  # noqa: E402
from builders.tiny_text_models import save_clip, save_clip_with_images  # noqa: E402
from t2i.cli import app  # noqa: E402

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
MOST_BYTES = 6 << 30  # of memory that a command may ask for
PROMPTS = ("a small red circle", "a large blue square above a small green star")


class Trap:
    """Creates a folder if it is unpickled."""

    def __init__(self, path: Path):
        self._path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


# ---- what is put in the place of a file ------------------------------------------------------------------------------


def _special(path: Path, way: str, trap: Path) -> None:
    path.unlink()
    if way == "pipe":
        os.mkfifo(path)
    elif way == "device":
        path.symlink_to("/dev/zero")
    elif way == "folder":
        path.mkdir()
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "outside":
        path.symlink_to(trap.with_name("secret"))
    elif way == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)


def _bytes(data: bytes, way: str, trap: Path, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    if way == "words":  # well-formed JSON of another kind, and lines of it
        words = ["null", "7", '"x"', "[]", "{}", "[[]]", "true", "-1e999", "9" * 6000, '{"a": NaN}', '{"": {"": []}}']
        return rng.choice(words).encode() + rng.choice([b"", b"\n"])
    return {
        "deep": lambda: rng.choice([b"[", b'{"a":', b'[{"":', b"- "]) * 100_000,
        "latin": lambda: data[:at] + b"\xff\xfe caf\xe9 \x80" + data[at:],
        "empty": lambda: b"",
        "zeros": lambda: bytes(max(len(data), 64)),
        "cut": lambda: data[:at],
        "noise": lambda: rng.randbytes(max(len(data), 256)),
        "bit": lambda: (
            data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if at < len(data) else b""
        ),
        "pickle": lambda: pickle.dumps(Trap(trap)),
        "yaml": lambda: f"!!python/object/apply:os.mkdir [{trap}]\n".encode(),
        "length": lambda: (1 << 62).to_bytes(8, "little") + data[8:],  # of a safetensors header
    }[way]()


SPECIAL = ("pipe", "device", "folder", "loop", "outside", "sparse")
CONTENT = ("words", "deep", "latin", "empty", "zeros", "cut", "noise", "bit", "pickle", "yaml", "length")


def spoil(path: Path, trap: Path, rng: random.Random) -> str:
    """Replaces a file; returns a description of the replacement."""
    way = rng.choice([*SPECIAL, *CONTENT, "missing", "json value", "json value"])
    if way == "missing":
        path.unlink()
    elif way in SPECIAL:
        _special(path, way, trap)
    elif way == "json value":
        try:
            tree = json.loads(path.read_bytes())
        except ValueError:
            path.write_bytes(_bytes(path.read_bytes(), "latin", trap, rng))
            return "latin"
        path.write_text(json.dumps(_changed(tree, rng)))
    else:
        path.write_bytes(_bytes(path.read_bytes(), way, trap, rng))
    return way


def _changed(tree: Any, rng: random.Random) -> Any:
    """Returns a JSON tree in which one value has another type or an odd value."""
    if isinstance(tree, dict | list) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        copy: Any = tree.copy()
        copy[key] = _changed(tree[key], rng)
        return copy
    odd = [
        None,
        -1,
        0,
        1e308,
        10**30,
        "",
        "../../x",
        "/etc/passwd",
        [],
        {},
        [None],
        True,
        "\x00",
        "a" * 5000,
        {"a": []},
    ]
    return rng.choice(odd)


# ---- what is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Something from a stranger, and the command that reads it.

    Attributes:
        make: writes it into a new folder; returns its path there.
        command: returns the words of the command from (its path, a folder to write into).
        result: returns the digest of the command's output from (its path, the folder); None: only the messages count.
    """

    make: Callable[[Path], Path]
    command: Callable[[Path, Path], Sequence[str]]
    result: Callable[[Path, Path], str] | None = None


def images_in(_: Path, out: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(out.rglob("*.png")):
        with Image.open(path) as image:
            total.update(np.asarray(image).tobytes())
    return total.hexdigest()


def trained_in(_: Path, out: Path) -> str:
    (path,) = (out / "run" / "checkpoints").glob("step-*/manifest.json")
    return json.dumps({name: entry["sha256"] for name, entry in json.loads(path.read_bytes())["files"].items()})


def scores_in(_: Path, out: Path) -> str:
    return json.dumps([(one["name"], one["value"]) for one in json.loads((out / "scores.json").read_bytes())["scores"]])


def copied(source: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(source, folder / "it"))


def written(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def layout(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made = getattr(published_layouts, name)(folder / "it")
        return made if isinstance(made, Path) else folder / "it"

    return make


def sampled(folder: Path) -> Path:
    words = ["sample", str(GOLDEN / "cgan"), *PROMPTS, "-n", "4", "--out", str(folder / "it")]
    assert app.main(words) == 0
    return folder / "it"


def scored(folder: Path) -> Path:
    for name in ("a", "b"):
        out = folder / "it" / f"{name}.json"
        out.parent.mkdir(exist_ok=True)
        seed = str(ord(name))
        assert app.main(["eval", "score", str(GOLDEN / "cgan"), "-n", "8", "--seed", seed, "--out", str(out)]) == 0
    return folder / "it"


def reference(folder: Path) -> Path:
    out = folder / "it.safetensors"
    words = ["eval", "reference", "shapes-2", "--embedded", "-n", "32", "--resolution", "16", "--save-features"]
    assert app.main([*words, "--out", str(out)]) == 0
    return out


def arrays(folder: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)
    for name in ("it", "others"):
        np.savez(folder / f"{name}.npz", arr_0=images)
    return folder / "it.npz"


def weights(folder: Path) -> Path:
    torch.save({"a": torch.zeros(3)}, folder / "it.pth")
    return folder / "it.pth"


def shown(folder: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(folder / "it.png")
    return folder / "it.png"


def train(family: str, out: Path, *sets: str, data: str = "shapes-1") -> list[str]:
    words = ["train", family, "--config", f"{family}-tiny", "--data", data, "--run-dir", str(out / "run")]
    keys = [key for key in KEYS[family] if not any(key.split("=")[0] == mine.split("=")[0] for mine in sets)]
    return [*words, *(word for value in (*keys, "max_train_steps=1", *sets) for word in ("--set", value))]


def score(place: Path, out: Path, *words: str) -> list[str]:
    return ["eval", "score", str(place), *words, "--out", str(out / "scores.json")]


def sample(place: Path, out: Path, *words: str) -> list[str]:
    return ["sample", str(place), *(words or PROMPTS), "--out", str(out / "images")]


def data_kinds() -> dict[str, Kind]:
    names = [
        "coco",
        "flickr8k",
        "flickr30k_csv",
        "karpathy_coco",
        "cub",
        "flowers",
        "visual_genome",
        "shards",
        "parquet",
    ]
    return {
        f"{action} {name}": Kind(layout(name), command)
        for name in [*names, "saved_to_disk", "folder"]
        for action, command in {
            "check": lambda place, out: ["data", "check", str(place)],
            "train": lambda place, out: train("vqvae", out, "data.limit=8", data=str(place)),
        }.items()
    }


def cached(folder: Path) -> Path:
    """Returns a cache that a training and its data have filled."""
    published_layouts.parquet(folder / "data")
    os.environ["T2I_CACHE"] = str(folder / "it")
    assert app.main(_of_cache(folder / "it", folder / "first")) == 0
    shutil.rmtree(folder / "first")
    return folder / "it"


def _of_cache(place: Path, out: Path) -> list[str]:
    os.environ["T2I_CACHE"] = str(place)
    return train("cgan", out, "data.limit=8", data=str(place.parent / "data"))


KINDS: dict[str, Kind] = {
    "sample from a cgan": Kind(copied(GOLDEN / "cgan"), sample, images_in),
    "sample from a prior": Kind(lambda folder: make_prior_run(folder / "it"), sample, images_in),
    "sample from a saved pipeline": Kind(copied(GOLDEN / "saved"), sample, images_in),
    "report of a run": Kind(
        copied(GOLDEN / "cgan"),
        lambda place, out: [
            *("eval", "report", str(place), "-n", "4", "--neighbours", "0", "--data", "shapes-2"),
            *("--out", str(out / "page.html")),
        ],
    ),
    "score of a run": Kind(copied(GOLDEN / "cgan"), lambda place, out: score(place, out, "-n", "8"), scores_in),
    "resume": Kind(
        lambda folder: resumable(folder),
        lambda place, out: train("cgan", place.parent, "max_train_steps=2", "text.path=null"),
    ),
    "text of an align run": Kind(
        copied(GOLDEN / "align"),
        lambda place, out: train("cgan", out, f"text={{encoder: aligned, path: {json.dumps(str(place))}}}"),
        trained_in,
    ),
    "tokenizer": Kind(
        copied(GOLDEN / "vqvae"),
        lambda place, out: train("prior", out, f"tokenizer.path={json.dumps(str(place))}"),
        trained_in,
    ),
    "text encoder of a CLIP folder": Kind(
        lambda folder: save_clip(folder / "it", "projected"),
        lambda place, out: train("cgan", out, f"text={{encoder: clip, path: {json.dumps(str(place))}}}"),
        trained_in,
    ),
    "CLIP score": Kind(
        lambda folder: save_clip_with_images(folder / "it"),
        lambda place, out: score(make_run(out / "run"), out, "-n", "8", "--clip", str(place)),
        scores_in,
    ),
    "scorer": Kind(
        copied(GOLDEN / "align"),
        lambda place, out: score(GOLDEN / "cgan", out, "-n", "8", "--scorer", str(place)),
        scores_in,
    ),
    "scores of samples": Kind(
        sampled, lambda place, out: score(place, out, "--against", str(GOLDEN / "cgan")), scores_in
    ),
    "comparison": Kind(scored, lambda place, out: ["eval", "compare", str(place / "a.json"), str(place / "b.json")]),
    "reference": Kind(
        reference, lambda place, out: score(GOLDEN / "cgan", out, "-n", "8", "--against", str(place)), scores_in
    ),
    "images in an npz": Kind(
        arrays, lambda place, out: score(place, out, "--against", str(place.with_name("others.npz"))), scores_in
    ),
    "Inception weights": Kind(
        weights, lambda place, out: score(GOLDEN / "cgan", out, "-n", "8", "--inception", str(place))
    ),
    "image to keep": Kind(
        shown, lambda place, out: sample(GOLDEN / "saved", out, PROMPTS[0], "--init", str(place)), images_in
    ),
    "captions": Kind(
        written("it.jsonl", '{"candidate": "a red circle", "references": ["a red disc"]}\n' * 3),
        lambda place, out: ["eval", "captions", str(place), "--out", str(out / "scores.json")],
        scores_in,
    ),
    "config": Kind(
        written("it.yaml", "family: vqvae\nmax_train_steps: 1\ndata: {limit: 8, resolution: 16}\n"),
        lambda place, out: ["train", "vqvae", "--config", str(place), "--run-dir", str(out / "run"), "--dry-run"],
    ),
    **{
        f"prompts in {suffix}": Kind(
            written(f"it.{suffix}", content),
            lambda place, out: sample(GOLDEN / "cgan", out, "--prompts", str(place)),
            images_in,
        )
        for suffix, content in {
            "txt": "a red circle\na blue star\n",
            "jsonl": '{"prompt": "a red circle"}\n{"prompt": "a blue star"}\n',
            "json": '["a red circle", "a blue star"]',
            "csv": "prompt,n\na red circle,1\na blue star,2\n",
        }.items()
    },
    "cache": Kind(cached, _of_cache, trained_in),
    **data_kinds(),
}


def resumable(folder: Path) -> Path:
    assert app.main(train("cgan", folder, "max_train_steps=1")) == 0
    return folder / "run"


# ---- a trial ---------------------------------------------------------------------------------------------------------


def limited(words: Callable[[], Sequence[str]], before: Callable[[], Any] = lambda: None) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    before()
    sys.exit(app.main(list(words())))


def _base(name: str, root: Path) -> tuple[Path, str, set[str]]:
    """Returns (its path in a new folder, the result of its command, the lines of the command), without damage."""
    base = root / f"base-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    kind, note = KINDS[name], base.with_suffix(".json")
    if not note.exists():
        base.mkdir()
        place, out, untouched = base / "place", base / "out", base / "untouched"

        def make() -> None:
            (base / "place").write_text(str(kind.make(base).relative_to(base)))

        status, said = outcome(make, base, 200)
        assert status == 0, f"{name}: {said}"
        inside = place.read_text()
        place.unlink()
        shutil.copytree(base, untouched, symlinks=True, ignore=lambda *_: ["untouched", "stderr"])
        out.mkdir()
        status, said = outcome(lambda: limited(lambda: kind.command(untouched / inside, out)), base, 200)
        # weights of a tiny network are refused as they are, after they were read
        assert status == 0 or kind.result is None and judged(status, said, True) == "refused in one line", (
            f"{name}: {said}"
        )
        result = kind.result(untouched / inside, out) if kind.result else ""
        note.write_text(json.dumps([inside, result, sorted(_lines(said, untouched, out))]))
        shutil.rmtree(untouched)
        shutil.rmtree(out)
    inside, result, lines = json.loads(note.read_text())
    return base / inside, result, set(lines)


def _lines(said: str, *places: Path) -> set[str]:
    for place in places:
        said = said.replace(str(place), "PLACE")
    return {re.sub(r"\d+(\.\d+)?", "N", line) if "check" not in line else line for line in said.splitlines()}


def hostile_file(folder: Path, rng: random.Random) -> str:
    """Replaces one file of something from a stranger."""
    name = rng.choice(list(KINDS))
    kind = KINDS[name]
    try:
        base, expected, lines = _base(name, folder.parent)
    except AssertionError as error:
        return f"NO BASE {error}"
    top = folder.parent / base.relative_to(folder.parent).parts[0]
    own, out, trap = folder / "own", folder / "out", folder / "trap"
    shutil.copytree(top, own, symlinks=True)
    out.mkdir()
    place = own / base.relative_to(top)
    trap.with_name("secret").write_text("secret")
    files = [path for path in ([place] if place.is_file() else sorted(place.rglob("*"))) if path.is_file()]
    files = [path for path in files if path.name not in (".lock", "stderr")]
    parts = sorted({path.relative_to(place.parent).parts[:2] for path in files})
    part = rng.choice(parts)
    victim = rng.choice([path for path in files if path.relative_to(place.parent).parts[:2] == part])
    way = spoil(victim, trap, rng)
    status, said = outcome(lambda: limited(lambda: kind.command(place, out)), folder, 120)
    what = f"{name}: {way} for {victim.relative_to(own)}"
    if trap.exists():
        return f"EXECUTED {what}"
    if trap.with_name("secret").read_text() != "secret":
        return f"WRITTEN OUTSIDE {what}"
    found = judged(status, said, True)
    if found == "refused in one line" and len(max(said.splitlines(), key=len)) > 2000:
        return f"LONG {what}"
    if status == 0:
        same = (kind.result(place, out) if kind.result else "") == expected
        new = _lines(said, own, out) - lines
        found = "same result" if same and kind.result else "said otherwise" if new else "same words"
        if found == "same words" and kind.result:
            found = "SILENT"
    return found if found[0].islower() else f"{found} {what}"


# ---- the readers themselves ------------------------------------------------------------------------------------------


def _readers() -> dict[str, tuple[Path | Callable[[Path], Path], Callable[[Path], Any]]]:
    """Returns functions that read a file or a folder, each with a path to copy or a function that makes one."""
    from t2i import checkpoint
    from t2i.align.frozen import load_dual_encoder
    from t2i.cli.fit.record import Step, Timings
    from t2i.config.load import read_tree
    from t2i.data import View, open_dataset
    from t2i.data.record import read_record
    from t2i.data.tools.check import check
    from t2i.extractors import open_extractor
    from t2i.families.tokenizers import load_tokenizer, tokenizer_beside
    from t2i.metrics.score import read_scores
    from t2i.report.runs import open_run as open_shown
    from t2i.sampling import saved
    from t2i.sampling.prompts import read_prompts
    from t2i.scoring.captions import score_captions
    from t2i.scoring.comparison import compare
    from t2i.scoring.images.generated import read_generated
    from t2i.scoring.images.reference import open_reference
    from t2i.scoring.images.sources import open_images
    from t2i.scoring.options import CaptionsOptions
    from t2i.text import load_encoder
    from t2i.trained import open_run
    from t2i.training import journal
    from t2i.training.directory import refuse_anothers

    def all_of(place: Path) -> None:
        dataset = open_dataset(str(place), "train", View(32, limit=8))
        dataset.images(range(len(dataset)))

    def listed(place: Path) -> None:
        names = [path.relative_to(place).as_posix() for path in place.rglob("*.png")]
        read_generated(place, names)
        open_images(str(place))

    layouts = [
        "coco",
        "flickr8k",
        "flickr8k_kaggle",
        "flickr30k",
        "flickr30k_csv",
        "flickr30k_karpathy",
        "karpathy_coco",
    ]
    layouts += ["cub", "flowers", "visual_genome", "shards", "parquet", "saved_to_disk", "folder"]
    prompts = {"txt": "a red circle\na star\n", "csv": "prompt,n\na star,1\n", "tsv": "Prompt\tn\na star\t1\n"}
    prompts |= {"json": '["a star", "a ring"]', "jsonl": '{"prompt": "a star"}\n'}
    return {
        "run": (GOLDEN / "cgan", open_run),
        "run of a prior": (GOLDEN / "prior", saved.read),
        "run of a cgan": (GOLDEN / "cgan", saved.read),
        "saved pipeline": (GOLDEN / "saved", saved.read),
        "checkpoints": (GOLDEN / "vqvae" / "checkpoints", lambda place: checkpoint.latest(place)),
        "tokenizer": (GOLDEN / "vqvae", load_tokenizer),
        "tokenizer of a run": (GOLDEN / "prior", lambda place: tokenizer_beside(open_run(place))),
        "dual encoder": (GOLDEN / "align", load_dual_encoder),
        "text encoder": (GOLDEN / "cgan" / "text", load_encoder),
        "papers": (GOLDEN / "cgan", lambda place: refuse_anothers(place, "cgan")),
        "journal": (GOLDEN / "cgan" / "journal.jsonl", journal.read),
        "record": (GOLDEN / "cgan" / "trained_on.safetensors", read_record),
        "shown run": (GOLDEN / "align", lambda place: open_shown(place, "a")),
        "config": (GOLDEN / "cgan" / "config.yaml", read_tree),
        "scores": (lambda folder: scored(folder) / "a.json", read_scores),
        "compared scores": (scored, lambda place: compare([place / "a.json", place / "b.json"])),
        "samples": (sampled, listed),
        "reference": (reference, open_reference),
        "images in an npz": (arrays, lambda place: open_images(str(place))),
        "images in a tar": (
            lambda folder: next(layout("shards")(folder).rglob("*.tar")),
            lambda place: open_images(str(place)),
        ),
        "captions": (KINDS["captions"].make, lambda path: score_captions(CaptionsOptions(file=path))),
        "timings": (
            written("t.json", '{"a": {"seconds": 1.5}}'),
            lambda place: Timings(place).seconds(Step("a", [], place)),
        ),
        "Inception": (weights, lambda place: open_extractor(f"inception:{place}")),
        "CLIP": (lambda folder: save_clip_with_images(folder / "it"), lambda place: open_extractor(f"clip:{place}")),
        **{f"prompts.{suffix}": (written(f"it.{suffix}", text), read_prompts) for suffix, text in prompts.items()},
        **{f"{name}, trained on": (layout(name), all_of) for name in layouts},
        **{f"{name}, checked": (layout(name), lambda place: check(str(place))) for name in layouts},
    }


def reader(folder: Path, rng: random.Random) -> str:
    """Does the same as `hostile_file` with the reader alone: it must raise an error of one line, or read the content."""
    readers = _readers()
    name = rng.choice(list(readers))
    source, read = readers[name]
    top = folder.parent / f"read-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
    if not top.exists():
        top.mkdir()
        if isinstance(source, Path):
            made = top / source.name
            shutil.copytree(source, made) if source.is_dir() else shutil.copy(source, made)
        else:
            note = top / "note"
            status, said = outcome(lambda: note.write_text(str(source(top).relative_to(top))), top, 200)
            assert status == 0, said
            made = top / note.read_text()
            note.unlink()
            (top / "stderr").unlink()
        (folder.parent / f"{top.name}.place").write_text(str(made.relative_to(top)))
    own, trap = folder / "own", folder / "trap"
    shutil.copytree(top, own, symlinks=True)
    place = own / (folder.parent / f"{top.name}.place").read_text()
    trap.with_name("secret").write_text("secret")
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    victim = rng.choice(files)
    way = spoil(victim, trap, rng)

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        os.environ["T2I_CACHE"] = str(folder / "cache")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(place)

    status, said = outcome(body, folder)
    what = f"{name}: {way} for {victim.relative_to(own)}"
    if trap.exists():
        return f"EXECUTED {what}"
    found = judged(status, said, True)
    return (
        {"resumed exactly": "read"}.get(found, found)
        if found[0].islower() or not status
        else f"{found} {what}: {said[-300:]}"
    )


PROOFS = {"readers": ("P13", 1000, reader), "files": ("P13", 400, hostile_file)}

if __name__ == "__main__":
    sys.exit(torture_runs.main(PROOFS))
