"""`--inception auto`: the published weights are downloaded once and verified, or one line names the fix."""

import hashlib
import http.server
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from t2i.errors import InputError
from t2i.extractors import open_extractor, published

CONTENT = b"weights" * 1000


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves files on this machine; returns the requested paths."""
    paths: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            paths.append(self.path)

    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "right.pth").write_bytes(CONTENT)
    (tmp_path / "www" / "other.pth").write_bytes(CONTENT[:-1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(published.MIRROR, f"http://127.0.0.1:{server.server_port}/right.pth")
    monkeypatch.setattr(published, "FID_INCEPTION_DIGEST", hashlib.sha256(CONTENT).hexdigest())
    yield paths
    server.shutdown()
    server.server_close()


def test_the_file_is_downloaded_once_and_again_where_it_was_damaged(asked: list[str], tmp_path: Path) -> None:
    place = published.published_inception()
    assert place.read_bytes() == CONTENT and place.is_relative_to(tmp_path / "cache")
    assert published.published_inception() == place and len(asked) == 1
    place.write_bytes(b"half a download")
    assert published.published_inception().read_bytes() == CONTENT and len(asked) == 2
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_file_put_there_by_hand_is_taken(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "cache" / "weights" / published.NAME).write_bytes(CONTENT)
    assert published.published_inception().read_bytes() == CONTENT and asked == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other.pth", "sends another file (sha256"),
        ("none.pth", "File not found"),
        ("://", "cannot download"),
        ("ftp:nowhere", "cannot download"),
        ("http://127.0.0.1:9/x.pth", "Connection refused"),
        ("http://no.such.host.invalid/x.pth", "cannot download"),
        ("file:///no/such/file.pth", "cannot download"),
        ("", "cannot download"),
    ],
)
def test_what_goes_wrong_says_where_to_put_the_file(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    import os

    base = os.environ[published.MIRROR].rpartition("/")[0]
    monkeypatch.setenv(published.MIRROR, f"{base}/{name}" if name.endswith(".pth") and "/" not in name else name)
    with pytest.raises(InputError) as error:
        published.published_inception()
    message = str(error.value)
    assert words in message and "\n" not in message
    assert f"put it at {tmp_path / 'cache' / 'weights' / published.NAME}" in message and "--inception FILE" in message
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_a_file_url_is_a_mirror_too(asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(published.MIRROR, (tmp_path / "www" / "right.pth").as_uri())
    assert published.published_inception().read_bytes() == CONTENT


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("script.pt", "holds a TorchScript program"),
        ("module.pth", "holds pickled objects besides tensors"),
        ("folder", "is a folder, not a file of weights"),
        ("other.pth", "is not the FID Inception: Conv2d_1a_3x3.conv.weight is missing"),
        ("half.pth", "cannot be read as weights (RuntimeError: "),
        ("empty.pth", "cannot be read as weights (EOFError)"),
        ("page.pth", "cannot be read as weights (UnpicklingError"),
        ("page.safetensors", "cannot be read as weights (SafetensorError"),
        ("list.pth", "is not a state dict"),
        ("number.pth", "is not a state dict"),
        ("none.pth", "not found"),
    ],
)
def test_what_is_no_weights_is_one_whole_sentence(tmp_path: Path, name: str, words: str) -> None:
    net = Net()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 2)), str(tmp_path / "script.pt"))
    torch.save(net, tmp_path / "module.pth")
    torch.save(net.state_dict(), tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 3}, tmp_path / "number.pth")
    whole = (tmp_path / "other.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    for page in ("page.pth", "page.safetensors"):
        (tmp_path / page).write_text("<!doctype html>Not found")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as error, warnings.catch_warnings(action="error"):
        open_extractor(f"inception:{tmp_path / name}")
    message = str(error.value)
    assert words in message and "\n" not in message and "weights-inception-2015-12-05-6726825d.pth" in message
    assert len(message) < 600 and not message.partition(" (")[2].partition(");")[0].endswith("If yo")
