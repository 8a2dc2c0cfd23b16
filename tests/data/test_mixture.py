"""Training data of several sources, and images without captions."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.data import DataConfig, View, open_dataset
from t2i.data.loader import Loader, Position, RowLoader
from t2i.data.mixture import Mixture, Other, members_of, open_training
from t2i.errors import InputError


def mixed(limit: int = 40) -> Mixture:
    main, replay, bare = (open_dataset(f"shapes-{n}", "train", View(16, limit=limit // n)) for n in (1, 2, 2))
    return Mixture(main, [Other("replay", replay, 0.2, True), Other("unlabelled", bare, 0.4, False)])


def test_rows_are_those_of_the_members_in_order() -> None:
    data = mixed()
    assert len(data) == 80 and data.others == [(20, 0.2), (20, 0.4)] and len(set(data.ids)) == 80
    first, second, _ = data.members
    assert (data.images([41, 3]) == np.stack([second.images([1])[0], first.images([3])[0]])).all()
    assert (
        data.captions[41] == second.captions[1]
        and data.captions[79] == ("",)
        and data.captions[-80] == first.captions[0]
    )
    assert [captioned for _, captioned in members_of(data)] == [True, True, False]
    assert data.fingerprint() != mixed(20).fingerprint()


def test_shares_are_kept_and_every_row_of_the_first_is_shown() -> None:
    data = mixed()
    rows = np.concatenate([next(order).rows for order in [RowLoader(data, 100, seed=3)] for _ in range(100)])
    shares = np.bincount(np.searchsorted([40, 60], rows, side="right"), minlength=3) / len(rows)
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.4], atol=0.02)
    assert set(rows.tolist()) == set(range(80))


def test_a_resumed_and_a_divided_order_are_the_same_order() -> None:
    data = mixed()
    whole = RowLoader(data, 8, 0)
    rows = np.concatenate([next(whole).rows for _ in range(6)])
    later = RowLoader(data, 8, 0, Position(24))
    assert (np.concatenate([next(later).rows for _ in range(3)]) == rows[24:]).all()
    ranks = [RowLoader(data, 4, 0, Position(0, index, 2)) for index in range(2)]
    assert (np.concatenate([next(rank).rows for _ in range(6) for rank in ranks]) == rows).all()
    assert (np.concatenate([next(batches).rows for batches in [Loader(data, 8, 0)] for _ in range(6)]) == rows).all()


def pictures(folder: Path, count: int = 40) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (16, 16), (i, 2 * i, 255 - i)).save(folder / f"{i:03d}.png")
    return folder


def test_a_bare_view_takes_images_without_captions(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    with pytest.raises(InputError, match="no captions"):
        open_dataset(str(folder), "train", View(16))
    found = open_dataset(str(folder), "train", View(16, bare=True))
    assert 30 <= len(found) < 40 and set(found.captions) == {("",)}
    line = {"file_name": found.ids[0], "text": "a blue field"}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    again = open_dataset(str(folder), "train", View(16, bare=True))
    assert again.ids == found.ids and again.captions[0] == ("a blue field",) and again.captions[1] == ("",)


def test_training_data_is_opened_with_its_others(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "images")
    data = DataConfig(address="shapes-1", resolution=16, limit=10, unlabelled=str(folder))
    found = open_training(data, replay=("shapes-2", 0.2))
    assert isinstance(found, Mixture) and found.others == [(50_000, 0.2), (len(found) - 50_010, 0.4)]
    assert isinstance(open_training(DataConfig(address="shapes-1")), type(open_dataset("shapes-1")))
    with pytest.raises(InputError, match=r"replay.address shapes-1 is the same as data.address"):
        open_training(data, replay=("shapes-1", 0.2))
