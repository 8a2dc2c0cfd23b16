"""Shards in object storage and on a web server equal those on a local disk. A server on this machine replaces the cloud."""

import json
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders import published_layouts as layouts
from builders.small_settings import SMALL, VQVAE
from builders.toy_run import digests, two_processes, warm_up
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.data.loader import Loader, LoadingEnded
from t2i.data.packed import remote
from t2i.errors import InputError

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
VIEW = View(resolution=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return layouts.shards(tmp_path / "data", count=3)


@pytest.fixture
def memory(local: Path) -> Iterator[str]:
    """Returns the same shards in the memory of this process."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in local.glob("*.tar"):
        system.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "shards:memory://bucket"
    system.store.clear()


class Unsteady:
    """A file system whose reads fail as `broken` says; counts its calls."""

    def __init__(self, broken: Callable[[int], bytes | Exception | None]) -> None:
        self._system, self._broken, self.asked = fsspec.filesystem("memory"), broken, list[int]()
        self.tries: Counter[tuple[str, int]] = Counter()  # of each range
        self.info, self.glob = self._system.info, self._system.glob

    def cat_file(self, url: str, start: int, end: int) -> bytes:
        self.asked.append(end - start)
        self.tries[url, start] += 1
        answer = self._broken(self.tries[url, start])
        if isinstance(answer, Exception):
            raise answer
        return self._system.cat_file(url, start=start, end=end) if answer is None else answer


def refusal(address: str) -> str:
    with pytest.raises(InputError) as raised:
        open_dataset(address, "train", VIEW)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_remote_shards_are_the_local_ones(local: Path, memory: str) -> None:
    here = open_dataset(f"shards:{local}", "train", VIEW)
    for place in ("/{00000..00002}.tar", "/*.tar", ""):
        there = open_dataset(memory + place, "train", VIEW)
        assert list(there.ids) == list(here.ids) and list(map(list, there.captions)) == list(map(list, here.captions))
        assert np.array_equal(there.images(range(len(here))), here.images(range(len(here))))
    # so a run may go on with a copy elsewhere
    assert there.digest() == here.digest() and there.fingerprint() == here.fingerprint()


def test_an_index_is_made_once_and_files_are_read_in_pieces(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = Unsteady(lambda tries: None)
    monkeypatch.setattr(remote, "_system", lambda url: system)
    monkeypatch.setattr(remote, "BLOCK", 10_000)
    data = open_dataset(memory, "train", VIEW)
    assert max(system.asked) <= 10_000 and len(system.asked) > 3
    system.asked.clear()
    data = open_dataset(memory, "train", VIEW)
    assert system.asked == []
    data.images([0, 5])
    assert len(system.asked) == 2 and max(system.asked) < 10_000


def test_dropped_connections_and_cut_answers_are_tried_again(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_dataset(memory, "train", VIEW).images(range(9))
    faults = {1: ConnectionResetError("reset by peer"), 2: b"cut", 3: None, 4: TimeoutError()}
    system = Unsteady(lambda tries: faults.get(tries))
    monkeypatch.setattr(remote, "_system", lambda url: system)
    assert np.array_equal(open_dataset(memory, "train", VIEW).images(range(9)), whole)
    assert set(system.tries.values()) == {3}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_connection_ends_a_run_and_replaces_no_image(
    memory: str, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    system = Unsteady(lambda tries: ConnectionError("no route to host") if len(system.asked) > 12 else None)
    data = open_dataset(memory, "train", VIEW)
    monkeypatch.setattr(remote, "_system", lambda url: system)
    loader = Loader(data, 5, seed=1, num_workers=workers)
    with pytest.raises(LoadingEnded) as raised:
        for _ in range(9):
            next(loader)
    words = str(raised.value)
    assert "has vanished" in words and "memory://bucket/" in words and "no route to host" in words and "\n" not in words
    assert loader.quarantine == []


def test_an_object_that_changed_is_told(memory: str) -> None:
    data = open_dataset(memory, "train", VIEW)
    system = fsspec.filesystem("memory")
    for name in system.ls("/bucket", detail=False):
        content = bytearray(system.cat_file(name))
        content[:] = bytes(len(content))
        system.pipe_file(name, bytes(content))
    with pytest.raises(InputError, match="the shard is newer than its index; start again to index it again"):
        next(Loader(data, 5, seed=1))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "memory://nowhere/{00..03}.tar",
            r"memory://nowhere/00.tar does not exist \(.*\); check the bucket and the name",
        ),
        ("memory://nowhere/*.tar", r"no file matches memory://nowhere/\*.tar; check"),
        ("memory://nowhere", r"no file matches memory://nowhere/\*.tar or memory://nowhere/\*/\*.tar; check"),
        ("https://example.org/*.tar", "a web server cannot list files; name them, as in .../train-"),
        ("ftp://example.org/a.tar", "protocol ftp:// is not supported; use one of s3, gs, az, http"),
        ("pipe:cat a.tar", "copy them to a local disk"),
    ],
)
def test_what_is_not_there_is_named(address: str, words: str) -> None:
    assert re.search(words, refusal(f"shards:{address}"))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> Any:
        raise ImportError(f"install it to access {protocol}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    assert "s3://b/a.tar needs the package s3fs, which is not installed: pip install 't2i[remote]'" in refusal(
        "shards:s3://b/a.tar"
    )
    assert "pip install gcsfs" in refusal("shards:gs://b/a.tar")


# ---- a web server -----------------------------------------------------------------------------------------------------------


class Ranged(SimpleHTTPRequestHandler):
    """Serves ranges, as web servers do, but not Python's."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None or not path.is_file():
            return super().do_GET()
        first, last = int(match[1]), min(int(match[2]), path.stat().st_size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(path.read_bytes()[first : last + 1])

    def log_message(self, *_: Any) -> None: ...


def served(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_shards_of_a_web_server(local: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    server = served(local, Ranged)
    url = f"shards:http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar"
    here, there = open_dataset(f"shards:{local}", "train", VIEW), open_dataset(url, "train", VIEW)
    assert np.array_equal(there.images(range(20)), here.images(range(20))) and there.digest() == here.digest()
    server.shutdown()
    server.server_close()
    assert "does not exist" in refusal(url.replace("00002", "00003")) or "cannot be reached" in refusal(url)


def test_a_web_server_without_ranges_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp", reason="needs the extra remote")
    monkeypatch.setattr(remote, "BLOCK", 10_000)

    class Plain(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = served(layouts.shards(tmp_path / "data"), Plain)
    said = refusal(f"shards:http://127.0.0.1:{server.server_port}/00000.tar")
    assert "the server ignores range requests" in said
    server.shutdown()
    server.server_close()


# ---- S3 ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Returns a bucket of a server on this machine, and a client of it."""
    pytest.importorskip("s3fs", reason="needs the extra remote")
    moto = pytest.importorskip("moto.server", reason="needs moto")
    boto3 = pytest.importorskip("boto3", reason="needs moto")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="images")
    for path in local.glob("*.*"):
        client.put_object(Bucket="images", Key=f"pairs/{path.name}", Body=path.read_bytes())
    yield client
    server.stop()


@pytest.mark.timeout(600)
def test_a_run_on_s3_resumes_exactly_and_refuses_an_object_that_changed(
    s3: Any, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run: str, address: str, *sets: str) -> int:
        words = ["train", "vqvae", "--config", "vqvae-tiny", "--data", address, "--run-dir", str(tmp_path / run)]
        sets = (*SMALL, *VQVAE, "max_train_steps=4", "checkpointing_steps=2", "validation_n=2", *sets)
        return app.main([*words, *(word for value in sets for word in ("--set", value))])

    remote_address = "shards:s3://images/pairs/{00000..00002}.tar"
    assert train("local", f"shards:{local}") == 0
    assert train("remote", remote_address, "dataloader_num_workers=1") == 0
    before = digests(tmp_path / "local", 4)
    assert digests(tmp_path / "remote", 4) == before
    shutil.rmtree(tmp_path / "remote" / "checkpoints" / "step-00000004")
    assert train("remote", remote_address) == 0 and digests(tmp_path / "remote", 4) == before

    other = layouts.shards(tmp_path / "other", count=1, each=12) / "00000.tar"
    s3.put_object(Bucket="images", Key="pairs/00001.tar", Body=other.read_bytes())
    capsys.readouterr()
    assert train("remote", remote_address, "max_train_steps=6") == 2
    assert re.search(r"the data is not what run \S+ was started with \(", capsys.readouterr().err)


def test_processes_on_s3_read_the_same(s3: Any, tmp_path: Path) -> None:
    warm_up()

    def body(rank: int) -> None:
        data = open_dataset("shards:s3://images/pairs/*.tar", "train", VIEW)
        (tmp_path / f"{rank}.json").write_text(json.dumps([list(data.ids), data.digest(), int(data.images([3]).sum())]))

    assert two_processes(body) == [0, 0]
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()


def test_what_s3_refuses_is_one_line(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "s3://elsewhere/00000.tar does not exist (" in refusal("shards:s3://elsewhere/00000.tar")
    assert "s3://images/nothing.tar does not exist (" in refusal("shards:s3://images/nothing.tar")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.filesystem("s3").clear_instance_cache()
    assert "no credentials for s3://images/pairs/00000.tar; set AWS_" in refusal("shards:s3://images/pairs/00000.tar")
    assert "AWS_ACCESS_KEY_ID" not in os.environ
