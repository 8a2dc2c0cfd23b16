"""The embedded data: exact from a seed, disjoint splits, captions that can be parsed, and an oracle that reads images."""

import numpy as np
import pytest

from t2i.data import View, open_dataset
from t2i.data.shapes import scenes as s
from t2i.data.shapes.captions import TEMPLATES, Spec, describe, meaning, parse
from t2i.data.shapes.oracle import judge, read
from t2i.errors import InputError

LEVELS = (1, 2, 3)


def spec_of(scenes: s.Scenes, i: int) -> Spec:
    """Returns what a caption of scene i must mention, in slot order."""
    slots = np.flatnonzero(scenes.shape_NM[i] >= 0)
    layout = int(scenes.layout_N[i])
    return Spec(
        shapes=tuple(scenes.shape_NM[i, slots]),
        colors=tuple(scenes.color_NM[i, slots]),
        sizes=tuple(scenes.size_NM[i, slots]),
        relations=s.LAYOUT_RELATIONS[layout],
        cell=layout if len(slots) == 1 else None,
        background=int(scenes.background_N[i]),
    )


@pytest.mark.parametrize("level", LEVELS)
def test_training_scenes_never_show_what_heldout_scenes_always_show(level: int) -> None:
    train = s.draw_scenes(level, "train", np.arange(20_000))
    held = s.draw_scenes(level, "heldout", np.arange(5_000))
    val = s.draw_scenes(level, "val", np.arange(5_000))
    for seen in (train, val):
        pairs = {(int(a), int(c)) for a, c in zip(seen.shape_NM.ravel(), seen.color_NM.ravel(), strict=True) if a >= 0}
        assert not pairs & s.HELDOUT_PAIRS
        assert seen is not train or len(pairs) == 56  # every other pair is shown
        assert not relations_of(seen) & s.HELDOUT_RELATIONS
    pair = s.has_heldout_pair(held.shape_NM, held.color_NM)
    relation = s.has_heldout_relation(held.layout_N, held.shape_NM)
    assert (pair | relation).all()
    if level > 1:
        assert (pair & ~relation).mean() > 0.2 and (relation & ~pair).mean() > 0.15


def relations_of(scenes: s.Scenes) -> set[tuple[int, int, int]]:
    found = set()
    for layout, shapes in zip(scenes.layout_N.tolist(), scenes.shape_NM.tolist(), strict=True):
        found |= {(shapes[a], r, shapes[b]) for a, r, b in s.LAYOUT_RELATIONS[layout]}
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_no_content_and_no_caption_of_val_or_heldout_is_in_train(level: int) -> None:
    def contents(split: str, n: int) -> set:
        z = s.draw_scenes(level, split, np.arange(n))
        return set(
            map(tuple, np.concatenate([z.layout_N[:, None], z.shape_NM, z.color_NM, z.size_NM], axis=1).tolist())
        )

    train = contents("train", 20_000)
    assert not train & contents("val", 2_000)
    assert not train & contents("heldout", 2_000)
    captions = {c[0] for c in open_dataset(f"shapes-{level}", "train", View(limit=20_000)).captions}
    for split in ("val", "heldout"):
        assert not captions & {c[0] for c in open_dataset(f"shapes-{level}", split, View(limit=2_000)).captions}


def test_every_word_of_the_data_is_in_training() -> None:
    train = s.draw_scenes(3, "train", np.arange(20_000))
    present = train.shape_NM >= 0
    for values, size in ((train.shape_NM, 8), (train.color_NM, 8), (train.size_NM, 2)):
        shares = np.bincount(values[present], minlength=size) / present.sum()
        assert shares.min() > 0.85 / size and shares.max() < 1.15 / size
    assert set(train.layout_N.tolist()) == set(range(15)) and set((train.shape_NM >= 0).sum(axis=1).tolist()) == {
        1,
        2,
        3,
    }
    assert len(relations_of(train)) == 128 - len(s.HELDOUT_RELATIONS)


def test_a_scene_depends_on_its_row_alone() -> None:
    whole = s.draw_scenes(3, "train", np.arange(500))
    some = s.draw_scenes(3, "train", np.array([499, 3, 250]))
    for name in ("layout_N", "shape_NM", "x_NM", "radius_NM", "tint_NM3"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name)[[499, 3, 250]])
    a, b = open_dataset("shapes-3", "train", View(limit=300)), open_dataset("shapes-3", "train", View(limit=20))
    assert list(a.captions[:20]) == list(b.captions) and a.ids[:20] == b.ids
    np.testing.assert_array_equal(a.images([7, 299, 0])[[0, 2]], b.images([7, 0]))


def test_the_data_is_the_same_on_every_machine() -> None:
    # changing what a seed draws invalidates every published score: do it knowingly
    data = open_dataset("shapes-3", "val", View(resolution=32, limit=200))
    assert data.captions[0][0] == describe(data.scenes, np.arange(200), "shapes-3", "val")[0]
    codes = data.scenes.layout_N + 100 * data.scenes.shape_NM[:, 0] + 1000 * data.scenes.color_NM[:, 0]
    assert int((codes * np.arange(1, 201)).sum()) == 78457902
    assert round(float(data.images(range(200)).mean()), 2) == 120.9


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_captions_say_what_the_scene_shows(level: int, split: str) -> None:
    data = open_dataset(f"shapes-{level}", split, View(limit=1_500))
    for i, (caption,) in enumerate(data.captions):
        said, scene = parse(caption), spec_of(data.scenes, i)
        assert said is not None, caption
        looks = sorted(zip(said.shapes, said.colors, said.sizes, strict=True))
        assert looks == sorted(zip(scene.shapes, scene.colors, scene.sizes, strict=True)), caption
        assert said.background in (None, scene.background)
        order = [
            list(zip(scene.shapes, scene.colors, strict=True)).index(x)
            for x in zip(said.shapes, said.colors, strict=True)
        ]
        assert {(order[a], r, order[b]) for a, r, b in said.relations} == set(scene.relations), caption
        assert said.cell == scene.cell or (split == "train" and said.cell is None)


def test_templates_are_many_and_meanings_survive_synonyms() -> None:
    assert sum(map(len, TEMPLATES.values())) >= 12
    same = ["a small red circle left of a large blue square", "a big blue box is to the right of a tiny red disc"]
    assert meaning(same[0]) == meaning(same[1])
    assert meaning(same[0]) != meaning("a small red circle right of a large blue square")
    assert meaning(same[0]) != meaning("a small blue circle left of a large red square")
    assert parse("a photo of a dog") is None and meaning("A  Photo") == "a photo"
    assert parse("A red circle.") == Spec((0,), (0,), (None,), (), None, None)


@pytest.mark.parametrize(("resolution", "least"), [(32, 0.99), (64, 0.995), (128, 0.995)])
@pytest.mark.parametrize("split", ["val", "heldout"])
def test_the_oracle_reads_real_pictures(resolution: int, least: float, split: str) -> None:
    for level in LEVELS:
        data = open_dataset(f"shapes-{level}", split, View(resolution, limit=1_000 if resolution < 128 else 200))
        rows = range(len(data))
        found = judge(read(data.images(rows)), [parse(c[0]) for c in data.captions])
        assert found["strict"].mean() >= least


def test_the_oracle_sees_each_kind_of_mistake() -> None:
    data = open_dataset("shapes-2", "val", View(64, limit=400))
    two = [i for i in range(400) if (data.scenes.shape_NM[i] >= 0).sum() == 2]
    readings = read(data.images(two))

    def judged(change) -> dict[str, float]:
        specs = [change(spec_of(data.scenes, i)) for i in two]
        return {name: float(flags.mean()) for name, flags in judge(readings, specs).items()}

    base = judged(lambda spec: spec)
    assert base["strict"] == 1.0
    from dataclasses import replace

    shape = judged(lambda z: replace(z, shapes=((z.shapes[0] + 1) % 8, z.shapes[1])))
    assert shape["strict"] == 0 and shape["shape"] < 0.1 and shape["layout"] == 1.0
    size = judged(lambda z: replace(z, sizes=(1 - z.sizes[0], z.sizes[1])))
    assert size["strict"] == 0 and size["shape"] > 0.9
    background = judged(lambda z: replace(z, background=(z.background + 1) % 3))
    assert background["strict"] == 0 and background["background"] == 0
    swapped = judged(lambda z: replace(z, relations=tuple((b, r, a) for a, r, b in z.relations)))
    assert swapped["relation"] == 0 and swapped["strict"] == 0 and swapped["layout"] == 1.0
    fewer = judged(lambda z: Spec(z.shapes[:1], z.colors[:1], z.sizes[:1], (), 4, None))
    assert fewer["count"] == 0 and fewer["strict"] == 0


def test_the_oracle_survives_noise_and_refuses_blobs() -> None:
    data = open_dataset("shapes-2", "val", View(64, limit=300))
    noisy = data.images(range(300)).astype(float) + np.random.default_rng(0).normal(0, 6, (300, 64, 64, 3))
    found = judge(read(noisy.clip(0, 255).astype(np.uint8)), [parse(c[0]) for c in data.captions])
    assert found["strict"].mean() > 0.95
    blank = np.full((2, 32, 32, 3), 255, np.uint8)
    assert [r.shapes for r in read(blank)] == [(), ()]
    blank[1, 4:28:2, 4:28:2] = 0  # a dotted patch is no shape of the data
    assert read(blank)[1].shapes != (1,)


@pytest.mark.parametrize(
    ("address", "split", "resolution", "words"),
    [
        ("shapes-4", "train", 32, "shapes-1, shapes-2 or shapes-3"),
        ("shapes-2", "dev", 32, "train, val, heldout"),
        ("shapes-2", "train", 8, "16 to 1024"),
        ("nowhere", "train", 32, "not found"),
    ],
)
def test_bad_addresses(address: str, split: str, resolution: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_dataset(address, split, View(resolution=resolution))
