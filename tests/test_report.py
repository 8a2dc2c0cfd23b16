"""The page of a run: it shows what the files say, nothing of them is markup, and nothing comes from elsewhere."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.errors import InputError
from t2i.images import save_png
from t2i.metrics.protocol import Protocol, Score, write_scores
from t2i.report import Part, Picture, write_report
from t2i.report_curves import MOST_POINTS, chart, charts, labels, linear_ticks, log_ticks, series_of, thin

HOSTILE = """<img src=x onerror="alert(1)"> & '</figcaption><script>alert(2)</script>"""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page in order, with the text directly and indirectly inside."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []  # one an element
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for k in self._open:
            self.texts[k] += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]

    def texts_of(self, tag: str) -> list[str]:
        return [text for (name, _), text in zip(self.elements, self.texts, strict=True) if name == tag]

    def path(self, name: str) -> list[list[tuple[float, float]]]:
        """The unbroken stretches of the curve of a series, from its place in its chart's legend."""
        for figure in re.findall(r'<figure class="chart">.*?</figure>', self.rawdata_all, re.S):
            names = [t.split()[0] for t in re.findall(r"</svg>([^<]+) <b>", figure)]
            names = names or [re.findall(r"<h4>(\S+)", figure)[0]]
            curves = re.findall(r'<path class="line[^"]*" d="([^"]+)"', figure.partition("<ul>")[0])
            assert len(names) == len(curves)
            if name in names:
                stretches = curves[names.index(name)].split("M")[1:]
                return [[tuple(map(float, p.split())) for p in part.split("L")] for part in stretches]  # type: ignore[misc]
        raise AssertionError(f"no curve of {name}")

    def feed(self, data: str) -> None:
        self.rawdata_all = data
        super().feed(data)


def score(metric: str, split: str, value: float, n: int = 500, **changes) -> Score:
    protocol = Protocol(metric, 1, None, None, n, n, "shapes-2", "d" * 64, split, "first", None, 32, 0)
    extra = {key: changes.pop(key) for key in ("extractor", "extractor_digest") if key in changes}
    return Score(value, replace(protocol, **extra), **changes)


def write_journal(folder: Path, records: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder of two trainings, with everything a page can show."""
    run = tmp_path / "run"
    write_journal(run / "cgan", [{"step": s, "time": 200 + s, "d_loss": 2 - s / 100, "g_loss": 1.0} for s in (50, 100)])
    write_journal(run / "zalign", [{"step": 10, "time": 100, "loss": 0.5, "images_per_second": 64.0, "note": "x"}])
    for folder in (run / "cgan", run / "zalign"):
        (folder / "config.yaml").write_text(f"family: {folder.name}\nnote: {HOSTILE}\n")
        (folder / "command.json").write_text(json.dumps({"device": HOSTILE, "versions": {"torch": "2.15"}}))
    for step in range(1, 10):
        picture(run / "cgan" / "samples" / f"step-{step:08d}.png", step)
    beside = {"bounds": {"real": 0.987, "shuffled": 0.012}, "interval": (0.31, 0.45), "interval_method": "wilson"}
    strict = [score("faithfulness-strict", split, 0.376, **beside) for split in ("heldout", "val")]
    unseen = score("faithfulness-strict-unseen-pair", "heldout", 0.25, n=421)
    fid = score("fid", "val", 12.34, extractor="shapes", extractor_digest="e" * 64)
    write_scores(run / "cgan" / "scores-a.json", [strict[0], unseen])
    write_scores(run / "cgan" / "scores-b.json", [strict[1], fid])
    return run


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    def write(run: Path, title: str = "A run", **pieces) -> Page:
        write_report(run, tmp_path / "out.html", title, **pieces)
        return Page((tmp_path / "out.html").read_text("utf-8"))

    return write


def pieces(run: Path) -> dict:
    shown = [
        Picture(picture(run / f"{k}.png", k), f"{k} {HOSTILE}", f"group {k % 2} {HOSTILE}", HOSTILE) for k in range(4)
    ]
    parts = [Part(f"part {HOSTILE}", f"t2i train {HOSTILE}", 61.4), Part("two", "t2i sample", 8.0)]
    return {"title": HOSTILE, "pictures": shown, "parts": parts, "next_commands": {HOSTILE: f"echo {HOSTILE}"}}


# ---- nothing from elsewhere, nothing that runs ---------------------------------------------------------------------


def test_texts_of_files_are_never_markup(run, page):
    shown = page(run, **pieces(run))
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in shown.elements}
    assert not [key for _, found in shown.elements for key in found if key.startswith("on")]
    assert len(shown.all("img")) == 4 + 6
    # each place shows its text as it is: title, heading, caption and its note, part, command, next, config, device
    everything = "\n".join(shown.texts_of("html"))
    assert everything.count(HOSTILE) == 2 + 2 + 4 + 4 + 2 + 2 + 2 + 2
    assert [found["alt"] for found in shown.all("img")][:4] == [f"generated for: {k} {HOSTILE}" for k in (0, 2, 1, 3)]


def test_the_page_needs_no_other_file(run, page):
    shown = page(run, **pieces(run))
    assert all(str(found["src"]).startswith("data:image/png;base64,") for found in shown.all("img"))
    assert not [found for _, found in shown.elements if {"href", "srcset", "data", "action", "style"} & set(found)]
    assert [tag for tag, found in shown.elements if "src" in found] == ["img"] * 10
    (style,) = shown.texts_of("style")
    assert "url(" not in style and "@import" not in style
    assert "http" not in shown.rawdata_all.replace('http-equiv="Content-Security-Policy"', "")
    (policy,) = [found["content"] for found in shown.all("meta") if "http-equiv" in found]
    assert str(policy).startswith("default-src 'none'") and "script" not in str(policy)


def test_every_picture_has_its_prompt_under_it_and_its_group_above(run, page):
    shown = page(run, **pieces(run))
    inside = [base64.b64decode(str(found["src"]).partition(",")[2]) for found in shown.all("img")[:4]]
    assert inside == [(run / f"{k}.png").read_bytes() for k in (0, 2, 1, 3)]
    assert shown.texts_of("figcaption")[:4] == [f"{k} {HOSTILE}{HOSTILE}" for k in (0, 2, 1, 3)]
    assert [text for text in shown.texts_of("h3") if text.startswith("group")] == [
        f"group {k} {HOSTILE}" for k in (0, 1)
    ]


def test_a_phone_and_a_reader_are_thought_of(run, page):
    shown = page(run, **pieces(run))
    assert shown.all("meta", name="viewport") and shown.all("html", lang="en")
    assert all(found["alt"] for found in shown.all("img"))
    assert all(found.get("aria-label") or found.get("aria-hidden") for found in shown.all("svg"))


# ---- curves --------------------------------------------------------------------------------------------------------


def test_every_numeric_series_has_a_curve_with_its_values(run, page):
    shown = page(run)
    for name in ("d_loss", "g_loss", "loss", "images_per_second"):
        assert shown.path(name)
    tips = [text for text in shown.texts_of("title") if text.startswith("step ")]
    assert tips == ["step 10\nloss: 0.5", "step 10\nimages_per_second: 64"] + [
        f"step {s}\nd_loss: {2 - s / 100:.3g}\ng_loss: 1" for s in (50, 100)
    ]
    assert "note" not in [text.split()[0] for text in shown.texts_of("h4")], "a text is no curve"


def test_trainings_stand_in_the_order_they_began(run, page):
    headings = page(run).texts_of("h3")
    assert headings.index("zalign") < headings.index("cgan")


def test_a_curve_is_where_its_values_are(tmp_path, page):
    values = {0: 0.0, 20: 5.0, 80: 10.0, 100: 2.5}
    write_journal(tmp_path / "r", [{"step": s, "time": 0, "x": v, "y": 1 - v / 10} for s, v in values.items()])
    shown = page(tmp_path / "r")
    (curve,) = shown.path("x")
    x0, x1 = curve[0][0], curve[-1][0]
    y0, y1 = curve[0][1], curve[2][1]
    assert x1 > x0 and y1 < y0, "larger values are higher up"
    for (x, y), (step, value) in zip(curve, values.items(), strict=True):
        assert (x - x0) / (x1 - x0) == pytest.approx(step / 100, abs=1e-3)
        assert (y - y0) / (y1 - y0) == pytest.approx(value / 10, abs=1e-3)


def test_wide_ranges_get_a_log_scale_that_says_so(tmp_path, page):
    write_journal(tmp_path / "r", [{"step": s, "time": 0, "x": 10.0**s, "z": 1.0 + s} for s in range(4)])
    shown = page(tmp_path / "r")
    (curve,) = shown.path("x")
    falls = np.diff([y for _, y in curve])
    assert np.allclose(falls, falls[0], atol=0.11) and falls[0] < 0
    assert [text for text in shown.texts_of("h4") if "log scale" in text] == ["x 1,000 log scale"]


def test_a_line_breaks_where_a_value_was_not_finite(tmp_path, page):
    values = [1.0, 2.0, None, 3.0, 4.0]
    write_journal(tmp_path / "r", [{"step": k, "time": 0, "x": v, "never": None} for k, v in enumerate(values)])
    shown = page(tmp_path / "r")
    assert [len(stretch) for stretch in shown.path("x")] == [2, 2]
    assert "step 2\nx: not finite" in shown.texts_of("title")
    with pytest.raises(AssertionError, match="no curve of never"):
        shown.path("never")


def test_long_journals_are_thinned_to_means():
    points = [(float(step), float(step % 7)) for step in range(5000)]
    few = thin(points)  # type: ignore[arg-type]
    assert MOST_POINTS / 2 < len(few) <= MOST_POINTS and few[-1][0] == 4999
    assert np.mean([value for _, value in few if value is not None]) == pytest.approx(3, abs=0.05)
    assert thin([(1.0, None), (2.0, 4.0)], 1) == [(2.0, 4.0)] and thin([(1.0, None)]) == [(1.0, None)]


def test_series_are_numbers_alone():
    records = [{"step": 1, "time": 5.0, "a": 1, "b": True, "c": "1", "d": None, "e": [1]}, {"step": 2, "a": None}]
    assert series_of(records) == {"a": [(1, 1.0), (2, None)]}


def test_related_series_share_a_chart():
    names = ["g_loss", "d_loss", "r1", "r2", "val_strict", "val_shape", "heldout_text_to_image_recall@1", "diversity"]
    drawn = charts([{"step": 1, **dict.fromkeys(names, 0.5)}])
    titles = [re.findall("<h4>(.*?) ?</h4>", one)[0].strip() for one in drawn]
    assert titles == [
        "losses",
        "gradient penalties",
        "Recall@K on heldout",
        "validation: share of captions",
        "diversity 0.5",
    ]


def test_more_lines_than_colours_are_told_apart():
    drawn = chart("many", {f"s{k}": [(0.0, 1.0), (1.0, float(k))] for k in range(11)})
    styles = re.findall(r'<path class="(line[^"]*)" d="M0 4H18"', drawn)
    assert len(styles) == len(set(styles)) == 11


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 7), (0.98, 1.02), (5, 5), (0, 0), (-2, -2), (1e-7, 3e-7), (0, 41234)]
)
def test_ticks_are_few_round_and_around_the_values(low, high):
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-9 * abs(low) and ticks[-1] >= high - 1e-9 * abs(high)
    assert all(len(Decimal(f"{tick:.10g}").normalize().as_tuple().digits) <= 4 for tick in ticks)


def test_ticks_are_labelled_with_the_digits_that_tell_them_apart():
    assert labels([0.07068, 0.07072, 0.07076]) == ["0.07068", "0.07072", "0.07076"]
    assert labels([0.0, 20000.0, 40000.0]) == ["0", "20,000", "40,000"]


@pytest.mark.parametrize(("low", "high"), [(1, 100), (0.003, 4), (1e-9, 1e9), (0.01, 1)])
def test_log_ticks_are_powers_of_ten_around_the_values(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low * 1.001 and ticks[-1] >= high * 0.999
    assert all(np.log10(tick) == pytest.approx(round(np.log10(tick))) for tick in ticks)


# ---- scores --------------------------------------------------------------------------------------------------------


def test_scores_stand_with_bounds_interval_n_and_protocol(run, page):
    shown = page(run)
    tables = shown.texts_of("table")
    assert re.search(r"shapes-2 valN 500.*shapes-2 heldoutN 500.*shapes-2 heldout, unseen pairN 421", tables[0], re.S)
    assert tables[0].count("0.3760.310 to 0.450real 0.987, shuffled 0.012") == 2 and "0.250" in tables[0]
    assert "fid-shapes" in tables[1] and "12.3" in tables[1]
    assert [text for text in shown.texts_of("summary") if "Protocol" in text] == [
        "Protocol of shapes-2 val",
        "Protocol of shapes-2 heldout",
    ]
    listed = "".join(shown.texts_of("details"))
    for part in (
        "fid-shapes@500",
        "faithfulness-strict-unseen-pair@421",
        "uint8, half up",
        "wilson",
        "d" * 12,
        "e" * 12,
    ):
        assert part in listed
    assert (
        "37.6% of 500 pictures for captions of shapes-2 val show all that the caption says" in shown.texts_of("li")[0]
    )


def test_n_stands_in_the_cell_where_it_is_not_the_columns(tmp_path, page):
    tmp_path.joinpath("r").mkdir()
    several = [score("clip", "val", 80.0, extractor="x"), score("diversity", "val", 5.0, n=96, extractor="pixels")]
    write_scores(tmp_path / "r" / "scores.json", several)
    assert page(tmp_path / "r").texts_of("table")[0] == "shapes-2 valN 500clip-x80diversity-pixels5N 96"


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_parts_are_listed_with_their_time_and_the_sum(run, page):
    shown = page(run, **pieces(run))
    cells = shown.texts_of("td")
    assert cells[-9:] == [
        f"part {HOSTILE}",
        "61 s",
        f"t2i train {HOSTILE}",
        "two",
        "8 s",
        "t2i sample",
        "total",
        "69 s",
        "",
    ]


def test_sheets_of_a_training_are_a_few_over_its_whole_length(run, page):
    shown = page(run)
    names = [text for text in shown.texts_of("figcaption") if text.startswith("step-")]
    assert len(names) == 6 and names[0] == "step-00000001" and names[-1] == "step-00000009"
    last = base64.b64decode(str(shown.all("img")[-1]["src"]).partition(",")[2])
    assert Image.open(io.BytesIO(last)).size == (8, 8)


def test_an_empty_folder_makes_a_page_that_says_what_is_missing(tmp_path, page):
    (tmp_path / "empty").mkdir()
    shown = page(tmp_path / "empty")
    assert shown.texts_of("h2") == ["Pictures", "Scores", "Training", "What was run", "Configs"]
    text = shown.texts_of("main")[0]
    for words in ("t2i sample draws them", "t2i eval score writes one", "t2i train writes one", "not recorded"):
        assert words in text


def test_what_is_damaged_is_said_in_a_line(run, page):
    shown = {"pictures": [Picture(run / name, name, "group") for name in ("missing.png", "text.png", "good.png")]}
    (run / "text.png").write_text("no picture")
    picture(run / "good.png")
    (run / "cgan" / "scores-a.json").write_text("{}")
    (run / "cgan" / "command.json").write_text("[1")
    (run / "cgan" / "config.yaml").write_bytes(b"\xff\xfe\xff")
    (run / "zalign" / "config.yaml").unlink()
    (run / "zalign" / "journal.jsonl").write_text('{"step": 1, "ti')
    shutil.rmtree(run / "cgan" / "samples")
    found = page(run, **shown)
    text = found.texts_of("main")[0]
    for words in (
        "missing.png: No such file or directory",
        "text.png is no PNG picture",
        "scores-a.json is not a score file",
        "cgan has no config.yaml that can be read",
        "zalign has no config.yaml that can be read",
        "the journal holds no numbers yet",
    ):
        assert words in text
    assert len(found.all("img")) == 1 and found.path("d_loss") and "fid-shapes" in text


def test_a_page_that_cannot_be_written_is_the_users_to_know(run, tmp_path):
    with pytest.raises(InputError, match="nowhere.*No such file or directory; free some space or name another folder"):
        write_report(run, tmp_path / "nowhere" / "out.html", "A run")
    (tmp_path / "out.html").mkdir()
    with pytest.raises(InputError, match="out.html: Is a directory"):
        write_report(run, tmp_path / "out.html", "A run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "run"]
