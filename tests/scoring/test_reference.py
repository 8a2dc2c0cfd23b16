"""`t2i eval reference`, and images from folders, tars and .npz files: equal numbers in every way, and refusals."""

import io
import json
import os
import shutil
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from builders.commands import Command, command_line
from builders.forks import fork, wait
from builders.scored_runs import SIDE, embedded, save_dual, save_run, values  # noqa: F401  # pytest finds fixtures by name
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.data.tools.export import export
from t2i.distributed import launched_ranks
from t2i.errors import InputError
from t2i.extractors import aligned as scorer_module
from t2i.metrics import Features
from t2i.metrics.score import differences, read_scores
from t2i.metrics.statistics import GaussianStats
from t2i.scoring.images.collection import ahead, silent
from t2i.scoring.images.extraction import Pass, extract
from t2i.scoring.images.sources import open_images
from t2i.scoring.images.store import FeatureFile, FeatureRows
from t2i.scoring.options import ScoreOptions
from t2i.scoring.runs import score_images

pytestmark = pytest.mark.filterwarnings(
    "ignore:FID of .* is biased upward", "ignore:skipped ", "ignore:pictures differ"
)


@pytest.fixture
def t2i(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: str) -> Command:  # noqa: F811
    """Runs `t2i eval ...` in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return command_line(capsys, "eval")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes the same 40 images as a folder, a tar and two .npz files."""
    folder = tmp_path_factory.mktemp("pictures") / "real"
    export(open_dataset("shapes-2", "heldout", View(32, limit=40)), folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    with tarfile.open(folder.with_suffix(".tar"), "w") as tar:
        for k, row in enumerate(rows):
            tar.add(folder / row["file_name"], row["file_name"])
            caption = row["text"] if k % 2 else json.dumps({"caption": row["text"]})
            add(tar, row["file_name"].replace(".png", ".txt" if k % 2 else ".json"), caption.encode())
    pictures = np.stack([np.asarray(Image.open(folder / row["file_name"])) for row in rows])
    np.savez(folder.with_suffix(".npz"), arr_0=pictures)
    np.savez_compressed(folder.with_name("packed.npz"), arr_0=pictures, arr_1=np.arange(40))
    return folder


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


# ---------------------------------------------------------------- the same pictures, however they lie


def test_a_folder_a_tar_and_an_npz_are_the_same_pictures(real: Path) -> None:
    folder, tar, npz, packed = (
        open_images(str(place), 15)
        for place in (real, real.with_suffix(".tar"), real.with_suffix(".npz"), real.with_name("packed.npz"))
    )
    assert folder.captions == tar.captions and npz.captions is None and len(folder) == len(npz) == 15
    assert {one.resolution for one in (folder, tar, npz, packed)} == {32}
    for rows in (range(15), [3, 4, 9], range(0)):
        all_of = [[picture for chunk in one.chunks(rows) for picture in chunk] for one in (folder, tar, npz, packed)]
        assert all(len(some) == len(rows) and np.array_equal(some, all_of[0]) for some in all_of)
    assert len({one.key() for one in (folder, tar, npz, packed)}) == 4
    assert open_images(str(real), 14).key() != folder.key() == open_images(str(real), 15).key()


def test_every_way_to_the_same_real_pictures_gives_the_same_scores(t2i: Command, real: Path) -> None:
    tar = real.with_suffix(".tar")
    common = ("score", tar, "-n", 30, "--force")
    assert (
        t2i(
            "reference",
            "shapes-2",
            "--split",
            "heldout",
            "-n",
            40,
            "--resolution",
            32,
            "--embedded",
            "--out",
            "a.safetensors",
        )[0]
        == 0
    )
    assert t2i("reference", real, "--embedded", "--save-features", "--out", "b.safetensors")[0] == 0
    assert t2i(*common, "--against", real, "--out", "direct.json")[0] == 0
    status, _, err = t2i(*common, "--against", "a.safetensors", "--out", "data.json")
    assert status == 0 and "skipped kid-shapes: a.safetensors holds only statistics" in err
    assert t2i(*common, "--against", "b.safetensors", "--out", "files.json")[0] == 0
    direct, data, files = (values(read_scores(Path(f"{name}.json"))) for name in ("direct", "data", "files"))
    assert files["fid-shapes"].value == pytest.approx(direct["fid-shapes"].value, rel=1e-6)
    assert files["kid-shapes"].value == direct["kid-shapes"].value
    assert differences(files["fid-shapes"], direct["fid-shapes"]) == []
    assert "kid-shapes" not in data and data["fid-shapes"].protocol.split == "heldout"
    assert data["fid-shapes"].protocol.n_real == 40
    assert data["fid-shapes"].protocol.data_digest == open_dataset("shapes-2", "heldout", View(32)).fingerprint()
    # of the data itself, those of the same captions
    assert (
        t2i(*common, "--data", "shapes-2", "--split", "heldout", "--metrics", "kid-shapes", "--out", "c.json")[0] == 0
    )
    (found,) = read_scores(Path("c.json"))
    assert found.protocol.n_real == 30 and abs(found.value) < direct["kid-shapes"].value + 1


def test_a_run_draws_what_its_statistics_are_of(t2i: Command, tmp_path: Path, real: Path) -> None:
    run = save_run(tmp_path / "run")
    words = ("--split", "heldout", "-n", 20, "--metrics", "fid-shapes", "--force")
    make = ("reference", "shapes-2", "--split", "heldout", "-n", 20, "--embedded", "--resolution")
    assert t2i(*make, SIDE, "--out", "r.safetensors")[0] == 0
    assert t2i("score", run, *words, "--out", "direct.json")[0] == 0
    assert t2i("score", run, *words, "--against", "r.safetensors", "--out", "file.json")[0] == 0
    (direct,), (file,) = read_scores(Path("direct.json")), read_scores(Path("file.json"))
    assert file.value == pytest.approx(direct.value, rel=1e-6) and differences(file, direct) == []
    assert t2i(*make, 32, "--out", "r.safetensors")[0] == 0
    status, _, err = t2i("score", run, *words, "--against", "r.safetensors", "--out", "other.json")
    assert status == 0 and f"generated {SIDE}, real 32 pixels a side" in err
    (other,) = read_scores(Path("other.json"))
    assert other.protocol.resolution is None and other.protocol.sizes == f"generated {SIDE}, real 32 pixels a side"


def test_a_reference_of_another_extractor_says_so(t2i: Command, tmp_path: Path, real: Path) -> None:
    from t2i.extractors.inception_network import Inception

    torch.manual_seed(0)
    safetensors.torch.save_file(Inception().state_dict(), "i.safetensors")
    digest = save_dual(tmp_path / "other", seed=1)
    assert (
        t2i("reference", real, "-n", 4, "--scorer", "other", "--inception", "i.safetensors", "--out", "r.safetensors")[
            0
        ]
        == 0
    )
    score = ("score", real, "-n", 4, "--force", "--against")
    status, _, err = t2i(*score, "r.safetensors", "--metrics", "fid-shapes")
    assert status == 2 and f", not shapes (weights {embedded_digest()[:8]})" in err
    assert f"r.safetensors holds align-{digest[:8]} (weights {digest[:8]})" in err and len(err.splitlines()) == 1
    legacy = ("--inception", "i.safetensors", "--resize", "legacy", "--metrics", "fid-inception-*")
    status, _, err = t2i(*score, "r.safetensors", *legacy)
    assert status == 2 and "the images of r.safetensors were resized by clean, here by legacy" in err
    status, _, err = t2i(*score, "r.safetensors", *legacy[:4])
    assert status == 0 and "were resized by clean, here by legacy" in err
    # mu and sigma of nobody knows what: taken for the Inception's where they have as many features
    np.savez("stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    status, out, err = t2i(*score, "stats.npz", *legacy, "--out", "o.json")
    (found,) = read_scores(Path("o.json"))
    assert status == 0 and found.name.startswith("fid-inception-") and found.protocol.n_real is None
    assert t2i(*score, "stats.npz", "--metrics", "fid-shapes")[0] == 2


def embedded_digest() -> str:
    return scorer_module.open_embedded().digest()


# ---------------------------------------------------------------- features: moments, files, a kill, several processes


class Counting:
    """An extractor of 600 numbers that counts its images."""

    name, dim, resize = "counting", 600, "none"

    def __init__(self) -> None:
        self.seen = 0

    def digest(self) -> str:
        return "c" * 64

    def features(self, images_BHWC: np.ndarray) -> Features:
        self.seen += len(images_BHWC)
        mean = images_BHWC.mean(axis=(1, 2, 3), dtype=np.float64)
        return np.stack([np.cos(mean * k) for k in range(self.dim)], axis=1).astype(np.float32)


def test_moments_are_those_of_the_features(real: Path) -> None:
    pictures, eye = open_images(str(real)), Counting()
    whole = extract(pictures, "real", [eye], Pass()).features[eye.digest()]
    stats = extract(pictures, "real", [eye], Pass(), condensed=[eye.digest()]).features[eye.digest()]
    assert isinstance(stats, GaussianStats) and stats.count == 40
    np.testing.assert_allclose(stats.mean, whole.mean(axis=0, dtype=np.float64), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stats.covariance, np.cov(whole.astype(np.float64).T), rtol=1e-7, atol=1e-12)


def test_features_are_kept_and_read_again(t2i: Command, real: Path, tmp_path: Path) -> None:
    words = (
        "score",
        real,
        "--against",
        real.with_suffix(".npz"),
        "--save-features",
        "f.safetensors",
        "--metrics",
        "kid-shapes",
    )
    status, first, _ = t2i(*words)
    assert status == 0 and "features are stored in f.safetensors\n" in first
    assert not list(tmp_path.glob(".*"))
    status, again, _ = t2i(*words)
    assert "reused from it: real images by shapes, generated images by shapes" in again
    assert first.splitlines()[:2] == again.splitlines()[:2]
    status, fewer, _ = t2i(*words, "-n", 20)
    assert "reused from it: real images by shapes\n" in fewer
    # another extractor's are not taken for them
    save_dual(tmp_path / "other", seed=1)
    assert "reused from it" not in t2i(*words[:-2], "--scorer", "other", "--force")[1]
    Path("f.safetensors").write_bytes(b"x")
    status, _, err = t2i(*words)
    assert status == 2 and "f.safetensors does not hold features of --save-features" in err


def test_a_pass_that_was_killed_goes_on(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.scoring.images.sources.CHUNK", 8)
    pictures, eye = open_images(str(real)), Counting()
    whole = extract(pictures, "real", [eye], Pass()).features[eye.digest()]

    def kill(what: str, done: int, total: int) -> None:
        if done >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(pictures, "real", [eye], Pass(kill, store=FeatureFile(tmp_path / "f.safetensors")))
    assert not (tmp_path / "f.safetensors").exists()
    eye.seen = 0
    store = FeatureFile(tmp_path / "f.safetensors")
    found = extract(pictures, "real", [eye], Pass(store=store), show=True)
    assert eye.seen == 16 and np.array_equal(found.features[eye.digest()], whole)
    assert len(found.first) == 24 and store.read == []
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]
    eye.seen = 0
    again = extract(pictures, "real", [eye], Pass(store=FeatureFile(tmp_path / "f.safetensors")))
    assert eye.seen == 0 and np.array_equal(again.features[eye.digest()], whole)
    rows = store.rows(pictures, eye, range(len(pictures)))
    with pytest.raises(InputError, match="another process writes features of these images to"):
        store.rows(pictures, eye, range(len(pictures)))
    rows.close()
    store.rows(pictures, eye, range(len(pictures))).close()


def test_rows_in_a_file_are_rows_in_memory(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    with open(tmp_path / "x", "a+b", buffering=0) as file:
        rows = FeatureRows(7, 3, file)
        for part in np.split(x, [2, 5]):
            rows.add(part)
        assert np.array_equal(rows.whole(), x)
        rows.keep(4)
        rows.add(x[4:])
        assert np.array_equal(rows.whole(), x)
    with open(tmp_path / "x", "ab") as file:
        file.truncate(3 * 12 + 5)  # killed in the middle of a row
    with open(tmp_path / "x", "a+b", buffering=0) as file:
        rows = FeatureRows(7, 3, file)
        assert rows.done == 3
        rows.keep(3)
        rows.add(x[3:])
        assert np.array_equal(rows.whole(), x)


def in_two_processes(action: Callable[[], object], folder: Path) -> None:
    """Runs `action` in two processes, like torchrun; their output is in `folder` by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> None:
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in launch.items()})
        with open(folder / f"{rank}.txt", "w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            action()

    for pid in [fork(lambda rank=rank: child(rank)) for rank in range(2)]:
        assert wait(pid, 120) == 0, [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def test_two_processes_give_the_scores_of_one(t2i: Command, real: Path, tmp_path: Path) -> None:
    words = [
        "score",
        real,
        "--against",
        real.with_suffix(".tar"),
        "-n",
        33,
        "--force",
        "--save-features",
        "f.safetensors",
    ]
    argv = ["eval", *map(str, words), "--out", "two.json"]
    in_two_processes(lambda: sys.exit(app.main(argv)), tmp_path)
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert told[1] == "" and "wrote two.json and two.safetensors" in told[0] and "biased upward" in told[0]
    status, out, _ = t2i(*words, "--out", "one.json")
    assert status == 0 and "reused from it: real images by shapes, generated images by shapes" in out
    Path("f.safetensors").unlink()
    assert t2i(*words, "--out", "alone.json")[0] == 0
    one, two, alone = (read_scores(Path(f"{name}.json")) for name in ("one", "two", "alone"))
    assert len(alone) == len(two) == len(one) > 9
    for a, *others in zip(alone, one, two, strict=True):
        for b in others:
            assert b.value == pytest.approx(a.value, rel=1e-9, abs=1e-12), a.name
            assert b.interval is None or b.interval == pytest.approx(a.interval, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("world", ["2", "two"])
def test_half_a_launch_is_one_line(t2i: Command, real: Path, monkeypatch: pytest.MonkeyPatch, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    status, out, err = t2i("score", real, "--against", real)
    assert (status, out) == (2, "") and f"WORLD_SIZE is {world}" in err and len(err.splitlines()) == 1


def test_two_processes_add_up_moments(real: Path, tmp_path: Path) -> None:
    def see() -> None:
        with launched_ranks() as ranks:
            eye = Counting()
            seen = extract(open_images(str(real), 33), "real", [eye], Pass(silent, ranks), condensed=[eye.digest()])
            stats = seen.features[eye.digest()]
            np.savez(
                tmp_path / f"{int(ranks.is_main)}.npz", mean=stats.mean, covariance=stats.covariance, n=stats.count
            )

    in_two_processes(see, tmp_path)
    digest = Counting().digest()
    one = extract(open_images(str(real), 33), "real", [Counting()], Pass(), condensed=[digest])
    alone = one.features[digest]
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert found["n"] == alone.count == 33
            np.testing.assert_allclose(found["mean"], alone.mean, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found["covariance"], alone.covariance, rtol=1e-9, atol=1e-12)


def test_a_thread_is_one_item_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for k in range(4):
            made.append(k)
            yield k

    def broken() -> Iterator[int]:
        yield 1
        raise InputError("broken")

    assert list(ahead(items())) == made == [0, 1, 2, 3]
    coming = ahead(broken())
    assert next(coming) == 1
    with pytest.raises(InputError, match="broken"):
        next(coming)


# ---------------------------------------------------------------- bad input


def hostile(path: Path, real: Path, kind: str) -> None:
    png = (real / "00000.png").read_bytes()
    with tarfile.open(path, "w") as tar:
        for name in ("a.png", "b.png", "c.png"):
            add(tar, name, png[:99] if kind == "broken" and name == "b.png" else png)
        if kind == "link":
            add(tar, "d.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        if kind == "device":
            add(tar, "d.png", b"", type=tarfile.CHRTYPE)
        if kind == "above":
            add(tar, "../d.png", png)
        if kind == "absolute":
            add(tar, "/tmp/d.png", png)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[: 512 * 2 + len(png)])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("link", "holds 1 link;"),
        ("device", "holds 1 member of a special kind"),
        ("above", "holds 1 name outside the folder"),
        ("absolute", "holds 1 name outside the folder"),
        ("cut", "damaged place, after which nothing is read"),
        ("broken", "broken b: "),
        ("text", "is not a tar file"),
        ("gzip", "is packed"),
        ("none", "cannot read"),
    ],
)
def test_a_hostile_tar_is_refused(t2i: Command, real: Path, tmp_path: Path, kind: str, says: str) -> None:
    path = tmp_path / "x.tar"
    if kind == "text":
        path.write_bytes(b"no tar at all" * 100)
    elif kind == "gzip":
        path.write_bytes(b"\x1f\x8b" + bytes(600))
    elif kind != "none":
        hostile(path, real, kind)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = t2i("score", "x.tar", "--against", real)
    assert (status, out) == (2, "") and says in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_broken_pictures_are_left_out_and_counted(t2i: Command, real: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(real, tmp_path / "broken"))
    for name in ("00003.png", "00011.png"):
        (broken / name).write_bytes((real / name).read_bytes()[:60])
    hostile(tmp_path / "x.tar", real, "broken")
    status, _, err = t2i("score", broken, "--against", real)
    assert status == 2 and "broken 00003.png: " in err and "and 00011.png" in err and "--skip-broken" in err
    words = ("--skip-broken", "--force", "--metrics", "fid-shapes,kid-shapes", "--out", "o.json")
    assert t2i("score", broken, "--against", "x.tar", *words)[0] == 0
    found = values(read_scores(Path("o.json")))
    assert {score.protocol.skipped for score in found.values()} == {"2 generated, 1 real"}
    assert found["kid-shapes"].protocol.n_fake == 38 and found["kid-shapes"].protocol.n_real == 2
    assert "score at least 16 on each side" in str(found["fid-shapes"].protocol.forced)
    assert found["kid-shapes"].protocol.forced is None


def test_captions_over_the_limit_are_counted(t2i: Command, real: Path, tmp_path: Path) -> None:
    long = Path(shutil.copytree(real, tmp_path / "long"))
    rows = [json.loads(line) for line in (long / "metadata.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["text"] += " small red circle" * 60
    (long / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = t2i("score", long, "--metrics", "clip-aligned")
    assert status == 0 and "3 of 40 captions are over the" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("score empty.npz --against REAL", "empty.npz holds no arr_0, but nothing"),
        ("score float.npz --against REAL", "arr_0 is float64 [4, 8, 8, 3]"),
        ("score grey.npz --against REAL", "arr_0 is uint8 [4, 8, 8]"),
        ("score objects.npz --against REAL", "arr_0 is object"),
        ("score lying.npz --against REAL", "does not fit its"),
        ("score text.npz --against REAL", "is not an .npz file"),
        ("score none.npz --against REAL", "none.npz"),
        ("score REAL.npz --against REAL -n 41", "set -n to at most 40"),
        ("score REAL --against text.npz", "is not an .npz file"),
        ("score REAL --against bad.npz", "are not a mean and a covariance"),
        ("score REAL --against features.safetensors", "does not hold reference statistics"),
        ("score REAL --against none.safetensors", "none.safetensors"),
        ("score REAL --data shapes-2 --split val", "no image in split val of shapes-2 has "),
        ("score REAL.npz --data shapes-2", "which are needed to find their partners in shapes-2"),
        ("score REAL --prompts p.txt", "--prompts p.txt has no effect for images in"),
        ("score REAL --guidance 2 --against REAL", "--guidance 2.0 has no effect for images in"),
        ("score RUN --prompts none.txt", "none.txt"),
        ("score RUN --prompts blank.txt", "holds no prompt"),
        ("score RUN --prompts p.txt -n 4", "set -n to at most 3"),
        ("score RUN --prompts p.txt --metrics fid-shapes", "there are no real images"),
        ("score RUN --prompts p.txt --data shapes-2", "--data shapes-2 has no effect with --prompts"),
        ("score RUN --save-features nowhere/f.safetensors", "there is no folder nowhere"),
        ("score RUN --protocol coco", "protocol 'coco' is unknown; choose from: coco-30k, "),
        ("score RUN --protocol shapes-heldout -n 9", "--n 9 contradicts the protocol shapes-heldout, which has 1000"),
        ("score RUN --protocol shapes-heldout --split val", "--split val contradicts the protocol"),
        ("score RUN --protocol shapes-heldout --metrics fid-shapes", "--metrics fid-shapes contradicts the protocol"),
        ("score RUN --protocol coco-30k --inception text.npz --clip x", "name its folder with --data"),
        ("score RUN --protocol coco-30k --data shapes-2", "name the weights with --inception"),
        ("score RUN --protocol coco-30k --inception i --clip c --data shapes-2", "the protocol coco-30k needs coco"),
        ("score RUN --protocol shapes-heldout --prompts p.txt", "--prompts p.txt has no effect with --protocol"),
        ("reference REAL --out r.safetensors", "no extractor is named"),
        ("reference REAL --embedded --out r.json", "name a .safetensors file"),
        ("reference shapes-2 --embedded --out r.safetensors", "set the size of its images with --resolution"),
        ("reference shapes-2 --embedded --resolution 32 --split vall --out r.safetensors", "no split 'vall'"),
        ("reference REAL -n 41 --embedded --out r.safetensors", "set -n to at most 40"),
    ],
)
def test_bad_input_is_one_line(t2i: Command, real: Path, tmp_path: Path, run: Path, argv: str, says: str) -> None:
    np.savez("empty.npz")
    np.savez("float.npz", arr_0=np.zeros((4, 8, 8, 3)))
    np.savez("grey.npz", arr_0=np.zeros((4, 8, 8), np.uint8))
    np.savez("objects.npz", arr_0=np.array([{}] * 4))
    np.savez("bad.npz", mu=np.zeros(3), sigma=np.eye(4))
    with io.BytesIO() as file, zipfile.ZipFile("lying.npz", "w") as archive:
        np.save(file, np.zeros((4, 8, 8, 3), np.uint8))
        archive.writestr("arr_0.npy", file.getvalue().replace(b"(4, 8, 8, 3)", b"(9, 8, 8, 3)"))
    Path("text.npz").write_text("no archive")
    Path("features.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    Path("p.txt").write_text("a red circle\na blue square\na green star\n")
    Path("blank.txt").write_text("\n \n")
    before = sorted(tmp_path.rglob("*"))
    places = {"REAL": real, "REAL.npz": real.with_suffix(".npz"), "RUN": run}
    status, out, err = t2i(*(places.get(word, word) for word in argv.split()))
    assert (status, out) == (2, ""), err
    assert says in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "tiny")


def test_pictures_of_several_sizes_are_told(real: Path, tmp_path: Path, embedded: str) -> None:  # noqa: F811
    mixed = Path(shutil.copytree(real, tmp_path / "mixed"))
    Image.open(mixed / "00000.png").resize((48, 40)).save(mixed / "00000.png")
    with pytest.warns(UserWarning, match="generated of 2 sizes, 32x32 to 48x40"):
        found = score_images(ScoreOptions(target=str(mixed), against=str(real), metrics=("kid-shapes",)))
    assert found[0].protocol.sizes == "generated of 2 sizes, 32x32 to 48x40"
