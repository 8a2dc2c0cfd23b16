"""Labels of images: facts of scenes, classes of published data, class folders and the column `label`."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from builders import published_layouts as layouts
from t2i.data import View, open_dataset
from t2i.data.shapes.captions import parse
from t2i.data.shapes.vocabulary import COLORS, SHAPES
from t2i.data.tools.export import export_splits
from t2i.data.tools.labels import class_numbers, classes_of, labelled, values_of
from t2i.data.tools.opening import open_splits
from t2i.data.tools.pack import pack
from t2i.data.tools.rewrite import Rules, filter_captions
from t2i.errors import InputError
from t2i.reader.captioning import write_captions


def test_scene_facts_are_those_that_the_captions_tell():
    dataset = open_dataset("shapes-2", "val", View(16, limit=200))
    shapes, colours, counts = (values_of(dataset, name) for name in ("shape", "colour", "count"))
    for row, options in enumerate(dataset.captions):
        spec = parse(options[0])
        assert spec is not None
        assert set(shapes[row] or ()) == {SHAPES[k] for k in spec.shapes}
        assert set(colours[row] or ()) == {COLORS[k] for k in spec.colors}
        assert counts[row] == (str(len(spec.shapes)),)
    assert labelled(counts, ("1", "2")).is_single and not labelled(shapes, SHAPES).is_single


def test_published_classes_are_those_of_their_files(tmp_path: Path):
    birds = open_dataset(f"cub:{layouts.cub(tmp_path / 'birds')}", "train", View(16))
    assert classes_of(values_of(birds, "class"), "birds") == layouts.BIRDS[:3]
    assert all(own[0] in name for own, name in zip(values_of(birds, "class"), birds.ids, strict=True) if own)
    flowers = open_dataset(f"flowers:{layouts.flowers(tmp_path / 'flowers')}", "train", View(16))
    number = {name: int(name[-9:-4]) for name in flowers.ids}
    expected = [(f"class_{(number[name] - 1) % 4 + 1:05d}",) for name in flowers.ids]
    assert values_of(flowers, "class") == expected


def test_mirflickr_has_tags_for_captions_and_several_annotations_an_image(tmp_path: Path):
    root = layouts.mirflickr(tmp_path / "mir")
    with pytest.warns(UserWarning, match="1 image in split"):
        splits = {split: open_dataset(str(root), split, View(16)) for split in ("train", "val", "test")}
    names = [name for dataset in splits.values() for name in dataset.ids]
    assert len(names) == 39 and "mirflickr/im7.jpg" not in names
    train = splits["train"]
    assert train.captions[0][0].endswith(", wall, nikon")
    found = dict(zip(train.ids, values_of(train, "annotation"), strict=True))
    for name, own in found.items():
        number = int(name.removeprefix("mirflickr/im").removesuffix(".jpg"))
        expected = {"animals": number % 2 == 1, "animals_r1": number % 4 == 1, "sky": number % 3 == 1}
        expected["water"] = number in (1, 2, 3, 5, 8, 13, 21)
        assert set(own or ()) == {word for word, holds in expected.items() if holds}


def test_an_annotation_that_is_no_number_is_told(tmp_path: Path):
    root = layouts.mirflickr(tmp_path / "mir")
    (root / "annotations" / "sky.txt").write_text("1\nim2.jpg\n")
    with pytest.raises(InputError, match=r"sky.txt: 'im2.jpg' is not the number of an image; take the published file"):
        open_dataset(f"mirflickr:{root}", "train", View(16))


def test_folders_have_their_classes_and_a_column(tmp_path: Path):
    rows = []
    for k in range(12):
        place = tmp_path / "train" / ("cats", "dogs")[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(place)
        row = {"file_name": str(place.relative_to(tmp_path / "train")), "text": f"an animal {k}"}
        rows.append(row | [{"label": 3}, {"label": ["old", "grey"]}, {"label": ""}][k % 3])
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    dataset = open_dataset(str(tmp_path), "train", View(16))
    order = [int(Path(name).stem) for name in dataset.ids]
    assert values_of(dataset, "class") == [(("cats", "dogs")[k % 2],) for k in order]
    assert values_of(dataset, "label") == [[("3",), ("old", "grey"), None][k % 3] for k in order]
    rows[0]["label"] = {"a": 1}  # type: ignore[assignment]
    (tmp_path / "train" / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(InputError, match="row 1: label .* is not a word, a whole number or a list of these"):
        values_of(open_dataset(str(tmp_path), "train", View(16)), "label")


def test_a_label_that_is_not_there_is_told_with_those_that_are(tmp_path: Path):
    dataset = open_dataset("shapes-1", "val", View(16, limit=4))
    with pytest.raises(InputError, match=r"no label 'color' \(did you mean colour\?\); it has shape, colour, size, "):
        values_of(dataset, "color")
    bare = open_dataset(str(layouts.folder(tmp_path / "bare")), "train", View(16))
    with pytest.raises(
        InputError, match="has no labels; use shapes-1..3, cub:, flowers:, mirflickr:, a folder with class folders, "
    ):
        values_of(bare, "class")


def test_classes_must_be_two_and_have_two_images_each():
    with pytest.raises(InputError, match="label x has 1 class; at least two are needed"):
        classes_of([("a",), ("a",)], "label x")
    with pytest.raises(InputError, match="label x: only one image has the class b"):
        classes_of([("a",), ("b",), ("a",)], "label x")
    dataset = open_dataset("shapes-1", "val", View(16, limit=200))
    numbers = class_numbers(dataset, "background")
    assert sorted(set(numbers.tolist())) == [0, 1, 2]


def _rows(count: int) -> list[dict]:
    """Returns images of one colour each, with a caption and the number of a class: 0, 1, or -1 for none."""
    rows = []
    for k in range(count):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "text": f"animal {k}", "label": k % 3 - 1})
    return rows


NAMES = (None, ("cat",), ("dog",))  # of the labels -1, 0, 1


def test_a_class_label_of_the_hub_has_its_names(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    features = datasets.Features(features | {"label": datasets.ClassLabel(names=["cat", "dog"])})
    data = datasets.Dataset.from_list(_rows(12), features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "train-00000.parquet"))
    for address in (f"hub:{tmp_path / 'saved'}", f"parquet:{tmp_path / 'train-00000.parquet'}"):
        shards = tmp_path / f"shards-{address.partition(':')[0]}"
        pack(open_splits(address), shards)
        for dataset in (open_dataset(address, "train", View(16)), open_dataset(f"shards:{shards}", "train", View(16))):
            numbers = [int(options[0].split()[1]) for options in dataset.captions]
            assert len(numbers) >= 8 and values_of(dataset, "label") == [NAMES[number % 3] for number in numbers]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", " b", "", None], [("a",), ("b",), None, None]),
        ([3, 4, None, 3], [("3",), ("4",), None, ("3",)]),
        ([["a", "b", "a"], [], None, ["c"]], [("a", "b"), (), None, ("c",)]),
    ],
)
def test_a_column_of_a_table(labels: list, expected: list, tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [row | {"label": label} for row, label in zip(_rows(4), labels, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    dataset = open_dataset(f"parquet:{tmp_path / 'train.parquet'}?split=train", "train", View(16, seed=3))
    numbers = [int(options[0].split()[1]) for options in dataset.captions]
    assert values_of(dataset, "label") == [expected[number] for number in numbers]


@pytest.mark.parametrize("labels", [[0.5, 1.5], [{"box": 1}, {"box": 2}], [None, None]])
def test_a_column_that_holds_no_classes_is_no_label_and_the_images_are_read(labels: list, tmp_path: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(
        pa.Table.from_pylist([row | {"label": label} for row, label in zip(_rows(2), labels, strict=True)]),
        tmp_path / "train.parquet",
    )
    dataset = open_dataset(f"parquet:{tmp_path / 'train.parquet'}?split=train", "train", View(16))
    assert len(dataset) >= 1
    with pytest.raises(InputError, match="has no labels; use shapes-1..3, cub:, .* or shards with .cls files"):
        values_of(dataset, "label")


def test_shards_have_classes_in_cls_members_and_in_json(tmp_path: Path):
    expected: dict[str, tuple[str, ...] | None] = {"0": ("3",), "1": ("cat", "old"), "2": None, "3": ("7",), "4": None}
    jsons: dict[int, object] = {1: {"label": ["cat", "old"]}, 2: {"label": {"a": 1}}, 3: {"label": 9}, 4: ["label"]}
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        for k, row in enumerate(_rows(5)):
            members = {"png": row["image"]["bytes"], "txt": row["text"].encode()}
            if k in (0, 3):
                members["cls"] = [b"3\n", b"", b"", b"7"][k]
            if k in jsons:
                members["json"] = json.dumps(jsons[k]).encode()
            for kind, content in members.items():
                layouts.add(tar, f"{k}.{kind}", content)
    for split in ("train", "val"):
        try:
            dataset = open_dataset(f"shards:{tmp_path}", split, View(16))
        except InputError:  # five images may leave no val
            continue
        assert values_of(dataset, "label") == [expected[name[-1]] for name in dataset.ids]


def test_a_shard_of_classes_without_captions_is_told_and_may_take_them_for_captions(tmp_path: Path):
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        for k, row in enumerate(_rows(3)):
            for kind, content in {"png": row["image"]["bytes"], "cls": b"cat"}.items():
                layouts.add(tar, f"{k}.{kind}", content)
    with pytest.raises(InputError, match=r"3 images without a caption; other members: .cls \(3\); remove it"):
        open_dataset(f"shards:{tmp_path}", "train", View(16))
    dataset = open_dataset(f"shards:{tmp_path}?text=cls", "train", View(16))
    assert set(map(tuple, dataset.captions)) == {("cat",)} and set(values_of(dataset, "label")) == {("cat",)}


# ---- what copies of data keep ----------------------------------------------------------------------------------------------


def _labelled_folder(root: Path) -> Path:
    """Writes a folder with classes, a label, a licence and a column of splits."""
    rows = []
    for k in range(12):
        place = root / ("red_fox", "dogs")[k % 2] / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(place)
        rows.append(
            {"file_name": str(place.relative_to(root)), "text": f"animal {k}", "split": ("train", "val")[k % 3 == 0]}
        )
        rows[-1] |= {
            "licence": "CC BY 4.0",
            "aspect": 1.5,
            **({} if k == 4 else {"label": ["old", "grey"][: 1 + k % 2]}),
        }
    (root / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return root


def _facts(address: str) -> dict[str, list[tuple]]:
    """Returns (caption, class, label) of the images of each split."""
    found = {}
    for split in ("train", "val"):
        dataset = open_dataset(address, split, View(16))
        columns = [options[0] for options in dataset.captions], values_of(dataset, "class"), values_of(dataset, "label")
        found[split] = sorted(zip(*columns, strict=True), key=str)
    return found


@pytest.mark.parametrize("tool", ["pack", "filter", "caption", "export"])
def test_copies_keep_labels_and_splits(tool: str, tmp_path: Path):
    source, out = _labelled_folder(tmp_path / "data"), tmp_path / "out"
    address = str(out)
    if tool == "pack":
        pack(open_splits(str(source)), out, per_shard=5)
        address = f"shards:{out}"
    elif tool == "filter":
        filter_captions(str(source), out, Rules())
    elif tool == "caption":
        write_captions(Silent(), str(source), out, keep=True)  # type: ignore[arg-type]
    else:
        export_splits({split: open_dataset(str(source), split, View(16)) for split in ("train", "val")}, out)
    assert _facts(address) == _facts(str(source))
    assert len(_facts(address)["train"]) == 8 and _facts(address)["train"][0] == (
        "animal 1",
        ("dogs",),
        ("old", "grey"),
    )
    if tool != "pack":
        rows = [json.loads(line) for path in out.rglob("metadata.jsonl") for line in path.read_text().splitlines()]
        assert all(row["licence"] == "CC BY 4.0" and row["aspect"] == 1.5 for row in rows) and len(rows) == 12
        again = tmp_path / "again"
        filter_captions(address, again, Rules())
        assert _facts(str(again)) == _facts(str(source))
    else:
        with tarfile.open(out / "train-00000.tar") as tar:
            row = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]
        assert row["licence"] == "CC BY 4.0" and row["labels"]["class"] in ("red fox", "dogs") and "split" not in row
        with pytest.raises(InputError, match="shards of other data or settings"):
            rows = (source / "metadata.jsonl").read_text().replace('"old"', '"young"')
            (source / "metadata.jsonl").write_text(rows)
            pack(open_splits(str(source)), out, per_shard=5)


class Silent:
    """A reader that must not be called."""

    writes, resolution, name = True, 16, "silent"

    def digest(self) -> str:
        return "silent"


def test_a_label_that_is_a_fraction_stays_in_copies(tmp_path: Path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [{"file_name": f"{k}.png", "text": f"animal {k}", "label": k / 4} for k in range(2)]
    for k in range(2):
        place = tmp_path / "data/train" / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * k, 0, 0)).save(place)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/train/metadata.parquet")
    pack(open_splits(str(tmp_path / "data")), tmp_path / "shards")
    filter_captions(str(tmp_path / "data"), tmp_path / "out", Rules())
    kept = [json.loads(line) for line in (tmp_path / "out/train/metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in kept] == [0.0, 0.25]


def test_annotations_and_scene_facts_are_kept_under_their_names(tmp_path: Path):
    with pytest.warns(UserWarning, match="1 image in split"):
        splits = open_splits(str(layouts.mirflickr(tmp_path / "mir")))
    pack(splits, tmp_path / "shards")
    packed = open_dataset(f"shards:{tmp_path / 'shards'}", "train", View(16))
    both = (splits["train"], packed)
    before, after = (sorted(zip(map(tuple, d.captions), values_of(d, "annotation"), strict=True)) for d in both)
    assert before == after and len(before) > 20
    scenes = open_dataset("shapes-2", "val", View(16, limit=20))
    export_splits({"val": scenes}, tmp_path / "scenes")
    folder = open_dataset(str(tmp_path / "scenes"), "val", View(16))
    for name in ("shape", "colour", "count", "background"):
        assert values_of(folder, name) == values_of(scenes, name)


def test_one_broken_image_of_one_is_told_in_the_singular(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(b"junk")
    (tmp_path / "train/a.txt").write_text("a dog")
    with pytest.raises(InputError, match="1 of 1 image in .* is broken, more than half; replace them: train/a.png"):
        open_dataset(str(tmp_path), "train", View(16))


# ---- a column of splits -------------------------------------------------------------------------------------------------


def test_a_class_label_of_splits_has_its_names(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = [row | {"split": k % 3} for k, row in enumerate(_rows(12))]
    features = {"image": datasets.Image(), "text": datasets.Value("string"), "label": datasets.Value("int64")}
    features = datasets.Features(features | {"split": datasets.ClassLabel(names=["test", "train", "validation"])})
    data = datasets.Dataset.from_list(rows, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "images.parquet"))
    for address in (f"hub:{tmp_path / 'saved'}", f"parquet:{tmp_path / 'images.parquet'}"):
        for number, split in enumerate(("test", "train", "val")):
            dataset = open_dataset(address, split, View(16))
            assert sorted(int(c[0].split()[1]) for c in dataset.captions) == [k for k in range(12) if k % 3 == number]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tar"])
def test_numbers_of_splits_without_names_are_told(kind: str, tmp_path: Path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [row | {"partition": k % 3} for k, row in enumerate(_rows(40))]
    address = str(tmp_path)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "images.parquet")
        address = f"parquet:{tmp_path}"
    elif kind == "tar":
        with tarfile.open(tmp_path / "images.tar", "w") as tar:
            for k, row in enumerate(rows):
                content = json.dumps({"caption": row["text"], "partition": row["partition"]}).encode()
                layouts.add(tar, f"{k}.png", row["image"]["bytes"])
                layouts.add(tar, f"{k}.json", content)
    else:
        for k, row in enumerate(rows):
            (tmp_path / f"{k}.png").write_bytes(row["image"]["bytes"])
        facts = [{"file_name": f"{k}.png", "text": row["text"], "partition": k % 3} for k, row in enumerate(rows)]
        lines = [json.dumps(row) for row in facts]
        if kind == "csv":
            lines = [",".join(facts[0]), *(",".join(map(str, row.values())) for row in facts)]
        (tmp_path / f"metadata.{kind}").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="column of splits has 0, 1, 2, none of which is train, val, test or heldout"):
        assert len(open_dataset(address, "train", View(16))) > 20
