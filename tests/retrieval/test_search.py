"""Search: equal to a sort, features cached by contents, copies combined, and one line for every mistake."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.tiny_run import make_run
from builders.tiny_text_models import save_clip_with_images
from t2i.cache import cache_dir
from t2i.cli import app
from t2i.extractors import open_image_text
from t2i.retrieval.collection import open_collection
from t2i.retrieval.exact import nearest_rows
from t2i.retrieval.graph import build_graph, cached_graph, near_rows, recall
from t2i.retrieval.options import RetrievalOptions, SearchOptions
from t2i.retrieval.scores import score_retrieval
from t2i.retrieval.searching import search
from t2i.retrieval.store import FeatureStore, folder_of, unit_features
from t2i.weights import scorer_dir

pytestmark = pytest.mark.filterwarnings("ignore:the embedded scorer knows:UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2I_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Writes 12 rendered scenes, one of which occurs three times; two of the copies have no caption."""
    from t2i.data import View, open_dataset
    from t2i.data.tools.export import export

    folder = tmp_path / "photos"
    export(open_dataset("shapes-1", "train", View(resolution=32, limit=12)), folder)
    for name in ("copy_a.png", "copy_b.png"):
        shutil.copy(folder / "00004.png", folder / name)
    return folder


def rows(count: int, dim: int, seed: int) -> np.ndarray:
    return unit_features(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def sorted_rows(queries: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows by a full sort of all cosines in float64, ties by row."""
    exact = np.stack([(items.astype(np.float64) * query.astype(np.float64)).sum(axis=1) for query in queries])
    order = np.stack([np.lexsort((np.arange(len(items)), -row)) for row in exact])[:, :k]
    return order, np.take_along_axis(exact, order, axis=1)


# ---- the exact search ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("k", [1, 10, 64, 500])
def test_blocks_give_what_a_full_sort_gives(block: int, k: int) -> None:
    items, queries = rows(300, 24, 0), rows(5, 24, 1)
    items[[3, 63, 64, 65, 128, 299]] = items[200]  # ties within a block and across borders
    queries[0] = items[200]
    found = nearest_rows(queries, items, k, block)
    order, scores = sorted_rows(queries, items, k)
    np.testing.assert_array_equal(found.rows_QK, order)
    np.testing.assert_array_equal(found.scores_QK, scores)
    if k >= 10:
        assert found.rows_QK[0, :7].tolist() == [3, 63, 64, 65, 128, 200, 299]


def test_rows_that_are_all_alike_come_in_their_order() -> None:
    items = np.repeat(rows(1, 128, 0), 1000, axis=0)
    for block in (64, 333, 5000):
        assert nearest_rows(rows(2, 128, 1), items, 20, block).rows_QK.tolist() == 2 * [list(range(20))]


def test_scores_that_float32_cannot_tell_apart_are_sorted_too() -> None:
    base = rows(1, 96, 3)[0].astype(np.float64)
    noise = np.random.default_rng(4).standard_normal((4000, 96)) * 3e-7
    items = unit_features((base + noise).astype(np.float32))
    order, _ = sorted_rows(base[None].astype(np.float32), items, 50)
    found = nearest_rows(base[None].astype(np.float32), items, 50, 512)
    np.testing.assert_array_equal(found.rows_QK, order)


# ---- the graph -----------------------------------------------------------------------------------------------------


def test_the_graph_finds_what_the_exact_search_finds() -> None:
    pytest.importorskip("faiss", reason="the extra t2i[search] is not installed")
    centres = rows(50, 32, 0)
    items = unit_features(centres[np.arange(3000) % 50] + 0.1 * rows(3000, 32, 1))
    queries = unit_features(centres + 0.1 * rows(50, 32, 2))
    exact = nearest_rows(queries, items, 10)
    found = near_rows(build_graph(items), queries, items, 10)
    assert recall(found, exact) >= 0.98
    same = found.rows_QK == exact.rows_QK  # where it finds all, order and scores are those of the exact search
    assert same.mean() >= 0.9
    np.testing.assert_array_equal(found.scores_QK[same], exact.scores_QK[same])
    assert recall(exact._replace(scores_QK=exact.scores_QK - 1), exact) == 0


def test_the_graph_is_kept_and_a_damaged_one_is_built_again(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="the extra t2i[search] is not installed")
    items, built = rows(200, 16, 0), []
    contents = [bytes([k]) * 32 for k in range(200)]
    for _ in range(2):
        graph = cached_graph(items, tmp_path / "kept", contents, built.append)
    assert built == [200] and graph.ntotal == 200
    (kept,) = (tmp_path / "kept").iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert cached_graph(items, tmp_path / "kept", contents, built.append).ntotal == 200
    assert built == [200, 200] and len(list((tmp_path / "kept").iterdir())) == 1
    cached_graph(items[:199], tmp_path / "kept", contents[:199], built.append)
    assert built[-1] == 199  # of other contents


# ---- features by contents ------------------------------------------------------------------------------------------


def test_an_image_is_encoded_once_whatever_it_is_called(photos: Path, tmp_path: Path) -> None:
    first = search(SearchOptions(data=str(photos), query="a red star", k=3), "cpu")
    assert (first.encoded, first.collection.total, len(first.collection)) == (12, 14, 12)
    shutil.move(photos, tmp_path / "moved")
    again = search(SearchOptions(data=str(tmp_path / "moved"), query="a red star", k=3), "cpu")
    assert again.encoded == 0
    assert [hit.score for hit in again.hits] == [hit.score for hit in first.hits]


def test_an_image_that_changes_is_encoded_anew(photos: Path) -> None:
    encoder = open_image_text(None)
    before = open_collection(str(photos), encoder)
    before.encode()
    Image.new("RGB", (32, 32), "red").save(photos / "00002.png")
    after = open_collection(str(photos), encoder)
    assert after.encode() == 1
    row = [str(after.places(k)[0]).endswith("00002.png") for k in range(len(after))].index(True)
    red = unit_features(encoder.features(np.array(Image.new("RGB", (32, 32), "red"))[None]))
    np.testing.assert_array_equal(after.features_ND[row], red[0])


def test_another_encoder_has_features_of_its_own(photos: Path, tmp_path: Path) -> None:
    clip = f"clip:{save_clip_with_images(tmp_path / 'clip')}"
    own = search(SearchOptions(data=str(photos), query="a red star", k=9), "cpu")
    other = search(SearchOptions(data=str(photos), query="a red star", k=9, by=clip), "cpu")
    assert other.encoded == 12 and len(list((cache_dir() / "features").iterdir())) == 2
    assert other.collection.encoder.digest() != own.collection.encoder.digest()
    found = other.collection.features_ND
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_damaged_shard_is_made_again(photos: Path) -> None:
    encoder = open_image_text(None)
    collection = open_collection(str(photos), encoder)
    collection.encode()
    (shard,) = folder_of(encoder).glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-32 * 12 - 9] ^= 1  # of the features, which come before the hashes
    shard.unlink()  # the collection reads the old file still
    shard.write_bytes(data)
    with pytest.warns(UserWarning, match="feature cache: .* is damaged .its checksum is wrong."):
        again = open_collection(str(photos), encoder)
        assert again.encode() == 12
    np.testing.assert_array_equal(again.features_ND, collection.features_ND)


def test_what_was_encoded_before_an_interrupt_is_kept(photos: Path) -> None:
    encoder = open_image_text(None)

    def batches():
        yield [b"a" * 32], np.zeros((1, 32, 32, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FeatureStore(encoder).fill(batches())
    assert b"a" * 32 in FeatureStore(encoder) and b"b" * 32 not in FeatureStore(encoder)


def test_images_in_shards_are_those_of_the_folder_and_rendered_ones_have_ids(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "train").mkdir()
    for path in photos.glob("0*.png"):
        path.rename(photos / "train" / path.name)
    (photos / "metadata.jsonl").rename(photos / "train" / "metadata.jsonl")
    in_files = search(SearchOptions(data=str(photos), query="a red star", k=2), "cpu")
    assert app.main(["data", "pack", str(photos), "--shards", "packed", "--size", "0"]) == 0
    packed = search(SearchOptions(data="packed", query="a red star", k=2), "cpu")
    assert packed.encoded == 0  # the same bytes
    assert [hit.score for hit in packed.hits] == [hit.score for hit in in_files.hits]
    assert all(hit.places[0].path is None for hit in packed.hits)
    assert all(hit.places[0].path for hit in in_files.hits)


def test_a_rendered_image_is_named_by_split_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.data.shapes.dataset.DEFAULT_SIZE", {"train": 10, "val": 40, "heldout": 10, "all": 10})
    hits = search(SearchOptions(data="shapes-1", query="a red star", split="val", k=2), "cpu").hits
    assert all(str(hit.places[0]).startswith("shapes-1/val/0000") and hit.places[0].path is None for hit in hits)


# ---- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_folds_and_writes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    lines[4]["text"] = "<script>alert(1)</script>"
    (photos / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    query = ["search", str(photos), "--image", str(photos / "00004.png"), "-k", "99"]
    assert app.main([*query, "--html", "page.html", "--out", "found.json"]) == 0
    out, err = capsys.readouterr()
    first = out.splitlines()[0].split("\t")
    assert first == ["1.0000", str(photos / "00004.png"), "x 3", "<script>alert(1)</script>"]
    assert f"searched 12 images and 2 copies in {photos}; 12 encoded now" in out
    assert "has 12 different images, fewer than -k 99" in err
    found = json.loads(Path("found.json").read_text())
    assert len(found["results"]) == 12 and len(found["results"][0]["places"]) == 3
    page = Path("page.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "x 3" in page and page.count("<article") == 12


def test_the_graph_by_the_command(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="the extra t2i[search] is not installed")
    assert app.main(["search", str(photos), "a red star", "-k", "5"]) == 0
    exact = capsys.readouterr().out.splitlines()[:5]
    assert app.main(["search", str(photos), "a red star", "-k", "5", "--ann"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:5] == exact
    assert "recall of the graph on sampled queries: 1.000" in out


def test_images_that_cannot_be_decoded_are_left_out(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t2i.data.folders.dataset.VERIFIED_AT_ONCE", 0)  # as a large folder that no check has seen
    (photos / "00007.png").write_bytes(b"junk")
    assert app.main(["search", str(photos), "a red star", "-k", "20"]) == 0
    out, err = capsys.readouterr()
    assert f"searched 13 images in {photos}; 13 encoded now" in out  # the broken one is not taken for a copy
    assert "00007.png" not in out and "skipped 1 image" in err and "cannot be decoded" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["photos"], "no query; add words"),
        (["photos", "  "], "no query; add words"),
        (["photos", "\u202e\u200b"], "only blanks and control characters"),
        (["photos", "a star", "--image", "photos/00001.png"], "a search has one query"),
        (["photos", "a star", "-k", "0"], "-k"),
        (["photos", "a star", "--ef", "9"], "--ef 9 has no effect on the exact search"),
        (
            ["photos", "--image", "nowhere.png"],
            "--image nowhere.png cannot be read (No such file or directory); name a .png",
        ),
        (["photos", "--image", "photos/metadata.jsonl"], "cannot be read (not a PNG, JPEG"),
        (["photos", "--image", "photos"], "--image photos cannot be read (it is a folder, not a plain file); name"),
        (["photos", "a star", "--by", "gan"], "gan is not a dual encoder"),
        (["photos", "a star", "--by", "nowhere"], "there is no folder nowhere; name a run of t2i train align"),
        (["photos", "a star", "--by", "inception:none.pth"], "none.pth"),
        (["photos", "a star", "--split", "third"], "no split 'third'"),
        (["empty", "a star"], "is an empty folder"),
        (["nowhere", "a star"], "not found"),
        (["photos", "a star", "--html", "nowhere/page.html"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], told: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    if "gan" in arguments:
        make_run(tmp_path / "gan")
    assert app.main(["search", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
    assert line.startswith("error: ") and told in line


def test_the_graph_without_faiss_is_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert app.main(["search", str(photos), "a red star", "--ann"]) == 2
    assert "pip install 't2i[search]'" in capsys.readouterr().err.splitlines()[-1]


# ---- scores --------------------------------------------------------------------------------------------------------


def test_scores_of_the_embedded_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["eval", "retrieval", "shapes-2", "-n", "60", "--out", "scores.json"]) == 0
    from t2i.metrics.score import read_scores

    scores = {score.protocol.metric: score for score in read_scores(Path("scores.json"))}
    right = scores["retrieval-image-to-text-r10"]
    assert (
        right.value == 1 and right.interval is not None and right.interval[0] < 1
    )  # Wilson, where the bootstrap has no width
    assert right.protocol.n_fake == 60 and right.protocol.split == "val" and right.protocol.extractor == "aligned"
    bound = scores["binding"]
    assert bound.value > 0.7 and 10 < bound.protocol.n_fake < 60 and "captions of" in str(bound.protocol.captions)
    assert "binding-aligned@" in capsys.readouterr().out


def test_scores_by_hand_where_images_have_several_captions(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "val"
    (folder / "val").mkdir(parents=True)
    lines = []
    for k, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (32, 32), colour).save(folder / "val" / f"{k}.png")
        lines.append({"file_name": f"{k}.png", "text": [f"a {colour} image {i}" for i in range(2)]})
    (folder / "val" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [1, 0.5, 0]}  # blue is taken for red

    class Encoder:
        name = clip_name = "hand"
        classes, dim, side, resize, scale = None, 3, 32, "none", 1.0

        def digest(self) -> str:
            return "0" * 64

        def features(self, images_BHWC: np.ndarray) -> np.ndarray:
            return images_BHWC.mean(axis=(1, 2)).astype(np.float32)

        def text_features(self, captions: list[str]) -> np.ndarray:
            return np.array([text[caption.split()[1]] for caption in captions], np.float32)

    monkeypatch.setattr("t2i.retrieval.scores.open_image_text", lambda by, device: Encoder())
    options = RetrievalOptions(data=str(folder), split="val", n=3)
    with pytest.warns(UserWarning, match="binding is not computed"):
        found = {score.protocol.metric: score for score in score_retrieval(options, "cpu", lambda *_: None)}
    share = found["retrieval-text-to-image-r1"]
    assert share.value == pytest.approx(4 / 6) and share.protocol.n_fake == 6
    assert share.bounds == {"chance": pytest.approx(1 / 3)} and share.protocol.captions == "all of each image"
    # the blue image is a right angle from all captions, and those of others come first
    assert found["retrieval-image-to-text-r1"].value == pytest.approx(2 / 3)
    assert found["retrieval-image-to-text-median-rank"].value == 1


def test_a_score_of_training_images_is_refused_and_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}

    def refuse(place, asked, images, allow):
        told.update(place=place, n=len(asked), allow=allow)
        return "trained on 9 images"

    monkeypatch.setattr("t2i.scoring.leaks.refuse_leaks", refuse)
    score_retrieval(RetrievalOptions(data="shapes-2", n=20), "cpu", lambda *_: None)
    assert not told  # the embedded scorer has no training data to keep apart: it was trained on split all
    options = RetrievalOptions(data="shapes-2", n=20, by=str(scorer_dir()), allow_leak=True)
    scores = score_retrieval(options, "cpu", lambda *_: None)
    assert told == {"place": scorer_dir(), "n": 20, "allow": True}
    assert {score.protocol.leak for score in scores} == {"trained on 9 images"}


# ---- a filter by nearness ------------------------------------------------------------------------------------------


def test_a_filter_keeps_images_near_the_words(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hits = search(SearchOptions(data=str(photos), query="a red star", k=3), "cpu").hits
    assert (
        app.main(
            ["data", "filter", str(photos), "near", "--near", "a red star", "--min-score", str(hits[1].score - 1e-4)]
        )
        == 0
    )
    kept = [json.loads(line) for path in Path("near").rglob("metadata.jsonl") for line in path.read_text().splitlines()]
    expected = {place.id for hit in hits[:2] for place in hit.places}
    assert {row["id"] for row in kept} == expected
    assert max(row["score"] for row in kept) == pytest.approx(hits[0].score, abs=1e-4)
    capsys.readouterr()
    assert app.main(["data", "filter", str(photos), "none", "--near", "a red star", "--min-score", "0.999"]) == 2
    assert "the highest score is" in capsys.readouterr().err and not Path("none").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--min-score", ".3"], "--min-score 0.3 has no effect without --near"),
        (["--near", "a star"], "needs one measure"),
        (["--near", "a star", "--top", "2", "--min-score", ".3"], "needs one measure"),
        (["--near", " ", "--top", "2"], "--near has no words"),
    ],
)
def test_a_filter_that_cannot_be_is_one_line(
    arguments: list[str], told: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["data", "filter", str(photos), "near", *arguments]) == 2
    assert told in capsys.readouterr().err.splitlines()[-1] and not Path("near").exists()
