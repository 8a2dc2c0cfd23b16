"""Files and folders are written completely or not at all."""

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from builders.forks import in_child
from t2i.cache import write_shard
from t2i.errors import InputError
from t2i.files import new_file, new_folder, read_regular, write_text
from t2i.tensors import write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch, durable):
    out = tmp_path / "page.html"
    write_text(out, "first é \udcff", durable)
    assert out.read_bytes() == "first é ?".encode() and names(tmp_path) == ["page.html"]
    with pytest.raises(KeyError), new_file(out, durable) as temporary:
        temporary.write_text("half")
        assert out.read_text("utf-8") == "first é ?" and temporary.name.endswith(".tmp")
        raise KeyError("a bug")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"cannot write .*page.html: No space left on device; free some space or name"):
        write_text(out, "second", durable)
    assert out.read_text("utf-8") == "first é ?" and names(tmp_path) == ["page.html"]


def test_only_a_durable_file_is_flushed_and_so_is_its_folder_entry(tmp_path, monkeypatch):
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.readlink(f"/proc/self/fd/{number}")))
    write_text(tmp_path / "a", "x")
    assert flushed == []
    write_text(tmp_path / "b", "x", durable=True)
    assert len(flushed) == 2 and flushed[0].endswith(".tmp") and flushed[1] == str(tmp_path)


def test_tensors_are_for_whoever_the_umask_lets_read_them(tmp_path):
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a", {"x": np.zeros(3)}, {})
        write_shard(tmp_path / "b" / "0.safetensors", {"x": torch.zeros(3)})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "b" / "0.safetensors")] == [
        0o640,
        0o640,
    ]


def test_a_folder_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot write .*: No such file or directory"):
        write_text(tmp_path / "none" / "a", "x")


def test_a_folder_appears_when_all_went_well(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "a" / "out") as partial:
        (partial / "file").touch()
        raise KeyError("a bug")
    assert names(tmp_path) == []
    with new_folder(tmp_path / "a" / "out") as partial:
        (partial / "file").touch()
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a" / "out") == ["file"]
    with pytest.raises(InputError, match="holds files"), new_folder(tmp_path / "a" / "out"):
        pass


def test_a_disk_that_fills_up_while_tensors_are_written_is_one_line(tmp_path: Path) -> None:
    """safetensors reports a full disk by its own exception; a limit on the size of files replaces the disk."""

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with new_folder(tmp_path / "out") as partial:
            save_file({"a": np.zeros(100_000, np.float32)}, partial / "a.safetensors")

    with pytest.raises(InputError, match=r"cannot write .*out: .*File too large.*; free some space") as caught:
        in_child(write)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_small_file_takes_little_memory_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_regular(tmp_path / "a", 1 << 50) == b"abc"
    with pytest.raises(OSError, match="it has 3 bytes, over the limit of 2"):
        read_regular(tmp_path / "a", 2)
