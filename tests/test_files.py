"""Files and folders that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from t2i.errors import InputError
from t2i.files import new_file, new_folder, write_text


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
