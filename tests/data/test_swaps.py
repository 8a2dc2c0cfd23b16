"""Captions with two attributes exchanged."""

from t2i.data import View, open_dataset
from t2i.data.shapes.captions import meaning, parse
from t2i.data.swaps import exchanged, exchanges


def test_words_of_one_kind_change_places() -> None:
    assert exchanges("a small red circle left of a large blue square") == [
        "a large red circle left of a small blue square",
        "a small blue circle left of a large red square",
        "a small red square left of a large blue circle",
    ]
    assert exchanges("An old dog beside a young cat") == ["An young dog beside a old cat"]
    assert exchanges("a red ball and a red box on a table") == []


def test_captions_of_shapes_keep_their_grammar_and_change_their_meaning() -> None:
    captions = [options[0] for options in open_dataset("shapes-2", "val", View(limit=200)).captions]
    swapped = exchanged(captions)
    for caption, other in zip(captions, swapped, strict=True):
        if other is not None:
            assert parse(other) is not None and meaning(other) != meaning(caption)
            assert sorted(other.split()) == sorted(caption.split())
    two = [caption for caption in captions if len(parse(caption).shapes) == 2]  # type: ignore[union-attr]
    assert sum(other is not None for other in exchanged(two)) > 0.95 * len(two)


def test_a_draw_depends_on_its_sample_alone() -> None:
    caption = "a small red circle left of a large blue square"
    found = exchanged([caption] * 60, list(range(60)), seed=1)
    assert exchanged([caption] * 20, list(range(40, 60)), seed=1) == found[40:] and len(set(found)) == 3
    assert exchanged([caption]) == exchanged([caption])
