"""The page of runs: it shows the contents of the files, escapes all of them, and loads nothing from elsewhere."""

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
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import make_run
from t2i import checkpoint
from t2i.cli import app
from t2i.config.load import to_yaml
from t2i.data import View, open_dataset
from t2i.errors import InputError
from t2i.extractors import open_image_text
from t2i.images import save_png
from t2i.metrics.score import Score, ScoreProtocol, read_scores, write_scores
from t2i.report import neighbours
from t2i.report.chart import chart, labels, linear_ticks, log_ticks
from t2i.report.curves import MOST_POINTS, charts, series_of, shared_charts, thin
from t2i.report.extremes import Extremes
from t2i.report.gallery import Gallery, SplitImages, make_gallery
from t2i.report.judged import Judged, Pool, Verdict, clip_scores, judged, verdict
from t2i.report.neighbours import Near, Neighbours
from t2i.report.options import ReportOptions
from t2i.report.page import Extras, Part, write_report
from t2i.report.runs import ShownRun, open_run, open_runs, read_object, score_files
from t2i.report.template import inline
from t2i.scoring.comparison import Samples, beside
from t2i.scoring.images.collection import Images
from t2i.scoring.options import ScoreOptions
from t2i.scoring.runs import score_run
from t2i.training import journal
from t2i.vqvae.autoencoder import Autoencoder
from t2i.vqvae.config import Config as TokenizerConfig

HOSTILE = """<img src=x onerror="alert(1)"> & '</figcaption><script>alert(2)</script>"""
VOID = {"meta", "img", "br"}
DATA = {"address": "shapes-2", "resolution": 32, "fit": "center", "limit": None, "split_seed": 0}


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
        """Returns the continuous parts of the curve of a series, by its place in the chart's legend."""
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


def score(metric: str, split: str, value: float, n: int = 500, **changes: Any) -> Score:
    protocol = ScoreProtocol(metric, 1, None, None, n, n, "shapes-2", "d" * 64, split, "first", None, 32, 0)
    names = ("extractor", "extractor_digest", "guidance", "sampling", "checkpoint")
    extra = {key: changes.pop(key) for key in names if key in changes}
    return Score(value, replace(protocol, **extra), **changes)


def write_journal(folder: Path, records: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def told(folder: Path, **more: Any) -> ShownRun:
    """Returns a run as it is read, without its weights."""
    scores, problems = score_files(folder)
    config = {"family": "cgan", "data": DATA, "note": HOSTILE, "learning_rate": 0.1} | more.pop("config", {})
    manifest = {"family": "cgan", "step": 100, "images_seen": 3200, "config": config, "sha256": "c" * 64}
    known = {"command": read_object(folder / "command.json"), "records": journal.read(folder / "journal.jsonl")}
    return ShownRun(folder.name, folder, "cgan", manifest, **known, scores=scores, problems=problems, **more)


def pixels(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def gallery_of(names: list[str]) -> Gallery:
    """Returns a gallery with one item of each kind; images are distinguished by their seeds."""
    made = {
        name: [Judged(pixels(10 * k + i), f"{i} {HOSTILE}", 50.0 + i, Verdict(i == 0, HOSTILE)) for i in range(2)]
        for k, name in enumerate(names, 1)
    }
    real = [Judged(pixels(i), f"{i} {HOSTILE}", 90.0 + i, Verdict(True, "correct")) for i in range(2)]
    extremes = Extremes(HOSTILE, made[names[0]][:1], made[names[0]][1:])
    near = Near(made[names[0]][0], [(Judged(pixels(77), HOSTILE), 0.25)])
    return Gallery(
        HOSTILE,
        [SplitImages("val", HOSTILE, real, made)],
        {names[0]: extremes},
        {names[0]: Neighbours(HOSTILE, [near], 0.5, 0.75)},
        [HOSTILE],
    )


@pytest.fixture
def run(tmp_path: Path) -> ShownRun:
    """Writes a run with everything that a page shows."""
    folder = tmp_path / "cgan"
    write_journal(folder, [{"step": s, "time": 200 + s, "d_loss": 2 - s / 100, "g_loss": 1.0} for s in (50, 100)])
    (folder / "command.json").write_text(
        json.dumps({"argv": ["x", HOSTILE], "device": HOSTILE, "versions": {"torch": HOSTILE}, "num_processes": 2})
    )
    (folder / "samples").mkdir()
    for step in range(1, 10):
        save_png(pixels(step), folder / "samples" / f"step-{step:08d}.png")
    beside = {"bounds": {"real": 0.987, "shuffled": 0.012}, "interval": (0.31, 0.45), "interval_method": "wilson"}
    strict = [score("faithfulness-strict", split, 0.376, **beside) for split in ("heldout", "val")]
    unseen = score("faithfulness-strict-unseen-pair", "heldout", 0.25, n=421)
    fid = score("fid", "val", 12.34, extractor="shapes", extractor_digest="e" * 64)
    write_scores(folder / "scores-a.json", [strict[0], unseen])
    write_scores(folder / "scores-b.json", [strict[1], fid])
    (folder / "scores-c.json").write_text(HOSTILE)
    return told(folder)


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    def write(*runs: ShownRun, title: str = "Runs", **pieces: Any) -> Page:
        write_report(tmp_path / "out.html", title, runs, **pieces)
        return Page((tmp_path / "out.html").read_text("utf-8"))

    return write


def whole(run: ShownRun) -> dict[str, Any]:
    parts = [Part(f"part {HOSTILE}", f"t2i train {HOSTILE}", 61.4), Part("two", "t2i sample", 8.0)]
    extras = Extras(parts=parts, next_commands={HOSTILE: f"echo {HOSTILE}"})
    return {"title": HOSTILE, "gallery": gallery_of([run.name]), "extras": extras}


def images_of(shown: Page, alt: str) -> list[np.ndarray]:
    found = [str(one["src"]) for one in shown.all("img") if str(one["alt"]).startswith(alt)]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).convert("RGB")) for src in found]


# ---- nothing from elsewhere, nothing that runs ---------------------------------------------------------------------


def test_texts_of_files_are_never_markup(run, page):
    run = replace(run, name=f"name {HOSTILE}", folder=run.folder)
    shown = page(run, **whole(run))
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in shown.elements}
    assert not [key for _, found in shown.elements for key in found if key.startswith("on")]
    assert shown.texts_of("h1") == [HOSTILE] and shown.texts_of("title")[0] == HOSTILE
    everything = "\n".join(shown.texts_of("html"))
    for words in (f"0 {HOSTILE}", f"name {HOSTILE}", f"✗ {HOSTILE}", f"part {HOSTILE}", f"echo {HOSTILE}"):
        assert words in everything
    assert f"name {HOSTILE}, for: 1 {HOSTILE}" in [one["alt"] for one in shown.all("img")]


def test_the_page_needs_no_other_file(run, page):
    shown = page(run, **whole(run))
    assert all(re.match(r"data:image/(png|webp);base64,", str(found["src"])) for found in shown.all("img"))
    assert not [found for _, found in shown.elements if {"srcset", "data", "action", "style"} & set(found)]
    links, places = shown.all("a"), {found["id"] for found in shown.all("section")}
    assert len(links) == len(places) == 8 and all(str(link["href"]).removeprefix("#") in places for link in links)
    assert {tag for tag, found in shown.elements if "src" in found} == {"img"}
    (style,) = shown.texts_of("style")
    assert "url(" not in style and "@import" not in style
    assert "http" not in shown.rawdata_all.replace('http-equiv="Content-Security-Policy"', "")
    (policy,) = [found["content"] for found in shown.all("meta") if "http-equiv" in found]
    assert str(policy).startswith("default-src 'none'") and "script" not in str(policy)


def test_a_phone_and_a_reader_are_thought_of(run, page):
    shown = page(run, **whole(run))
    assert shown.all("meta", name="viewport") and shown.all("html", lang="en")
    assert all(found["alt"] and found["width"] and found["height"] for found in shown.all("img"))
    assert all(found.get("aria-label") or found.get("aria-hidden") for found in shown.all("svg"))
    levels = [int(tag[1]) for tag, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), "no level of headings is left out"
    scrolling = [found for found in shown.all("div", role="region") if found.get("tabindex") == "0"]
    assert len(scrolling) == len(shown.all("table")) > 3, "every table scrolls by itself, by the keyboard too"


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_every_prompt_has_the_real_picture_and_that_of_each_run(tmp_path, page):
    runs = [told(tmp_path / name) for name in ("a", "b")]
    shown = page(*runs, gallery=gallery_of(["a", "b"]))
    assert [text for text in shown.texts_of("article") if text.startswith("0 ")] == [
        f"0 {HOSTILE}real 90 ✓ correcta 50 ✓ {HOSTILE}b 50 ✓ {HOSTILE}"
    ]
    for k, who in enumerate(("real image of", "a, for", "b, for")):
        found = images_of(shown, f"{who}: 1 ")
        assert np.array_equal(found[0], pixels(10 * k + 1))


def test_what_the_oracle_finds_wrong_is_said_in_words(run, page):
    shown = page(run, **whole(run))
    assert shown.all("span", **{"class": "right"}) and shown.all("span", **{"class": "wrong"})
    marks = [text for text in shown.texts_of("span") if text[:1] in "✓✗" and text]
    assert {text[0] for text in marks} == {"✓", "✗"} and all(len(text) > 3 for text in marks)


def test_neighbours_stand_with_their_distance_and_what_to_read_it_against(run, page):
    shown = page(run, **whole(run))
    assert "median distance 0.500, for held-out real images 0.750" in shown.texts_of("section")[2]
    (found,) = images_of(shown, "training image of")
    assert np.array_equal(found, pixels(77)) and "0.250" in shown.texts_of("section")[2]


def test_large_pictures_are_scaled_and_compressed():
    small = inline(pixels(0, 64))
    assert small.pixels and small.source.startswith("data:image/png")
    large = inline(np.zeros((1024, 1024, 3), np.uint8))
    assert large.source.startswith("data:image/webp") and large[1:] == (256, 256, False)


def test_sheets_of_a_training_are_a_few_over_its_whole_length(run, page):
    names = [text for text in page(run).texts_of("figcaption") if text.startswith("step-")]
    assert len(names) == 4 and names[0] == "step-00000001" and names[-1] == "step-00000009"


# ---- curves --------------------------------------------------------------------------------------------------------


def test_every_numeric_series_has_a_curve_with_its_values(run, page):
    shown = page(run)
    for name in ("d_loss", "g_loss"):
        assert shown.path(name)
    tips = [text for text in shown.texts_of("title") if text.startswith("step ")]
    assert tips == [f"step {s}\nd_loss: {2 - s / 100:.3g}\ng_loss: 1" for s in (50, 100)]


def test_runs_are_told_apart_in_a_chart_of_the_score_they_share(tmp_path, page):
    for name, steps in (("a", (10, 20)), ("b", (10, 40))):
        write_journal(tmp_path / name, [{"step": s, "time": s, "val_strict": s / 100, "val_colour": 1} for s in steps])
    runs = {
        name: (journal.read(tmp_path / name / "journal.jsonl"), pictures) for name, pictures in (("a", 8.0), ("b", 2.0))
    }
    (drawn,) = shared_charts(runs)
    for tip in ("20 images\nb: 0.1", "80 images\na: 0.1\nb: 0.4", "160 images\na: 0.2"):
        assert f"<title>{tip}</title>" in drawn
    assert "Side by side" in page(*(told(tmp_path / name) for name in "ab")).texts_of("h3")
    assert "Side by side" not in page(told(tmp_path / "a")).texts_of("h3")


def test_a_curve_is_where_its_values_are(tmp_path, page):
    values = {0: 0.0, 20: 5.0, 80: 10.0, 100: 2.5}
    write_journal(tmp_path / "r", [{"step": s, "time": 0, "x": v, "y": 1 - v / 10} for s, v in values.items()])
    shown = page(told(tmp_path / "r"))
    (curve,) = shown.path("x")
    x0, x1 = curve[0][0], curve[-1][0]
    y0, y1 = curve[0][1], curve[2][1]
    assert x1 > x0 and y1 < y0, "larger values are higher up"
    for (x, y), (step, value) in zip(curve, values.items(), strict=True):
        assert (x - x0) / (x1 - x0) == pytest.approx(step / 100, abs=1e-3)
        assert (y - y0) / (y1 - y0) == pytest.approx(value / 10, abs=1e-3)


def test_wide_ranges_get_a_log_scale_that_says_so(tmp_path, page):
    write_journal(tmp_path / "r", [{"step": s, "time": 0, "x": 10.0**s, "z": 1.0 + s} for s in range(4)])
    shown = page(told(tmp_path / "r"))
    (curve,) = shown.path("x")
    falls = np.diff([y for _, y in curve])
    assert np.allclose(falls, falls[0], atol=0.11) and falls[0] < 0
    assert [text for text in shown.texts_of("h4") if "log scale" in text] == ["x 1,000 log scale"]


def test_a_line_breaks_where_a_value_was_not_finite(tmp_path, page):
    values = [1.0, 2.0, None, 3.0, 4.0]
    write_journal(tmp_path / "r", [{"step": k, "time": 0, "x": v, "never": None} for k, v in enumerate(values)])
    shown = page(told(tmp_path / "r"))
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


def test_related_series_share_a_chart_and_the_others_are_folded():
    names = ["g_loss", "d_loss", "r1", "r2", "val_strict", "val_shape", "val_clip-aligned", "diversity"]
    drawn = charts([{"step": 1, **dict.fromkeys([*names, "heldout_text_to_image_recall@1"], 0.5)}])
    titles = [[re.findall("<h4>(.*?) ?</h4>", one)[0].strip() for one in part] for part in drawn]
    assert titles == [
        ["losses", "val: share of captions", "heldout: Recall@K", "val_clip-aligned 0.5"],
        ["gradient penalties", "diversity 0.5"],
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
    assert re.search(r"shapes-2 valN 500.*shapes-2 heldoutN 500", tables[0], re.S)
    assert tables[0].count("0.3760.310 to 0.450real 0.987, shuffled 0.012") == 2
    assert "fid-shapes" in tables[1] and "12.3" in tables[1]
    assert "shapes-2 heldout, unseen pairN 421" in tables[2] and "0.250" in tables[2]
    assert [text for text in shown.texts_of("summary") if "Protocol" in text] == [
        "Protocol of shapes-2 val, scores-b.json",
        "Protocol of shapes-2 heldout, scores-a.json",
    ]
    listed = "".join(shown.texts_of("details"))
    names = ("fid-shapes@500", "faithfulness-strict-unseen-pair@421", "uint8, half up", "wilson", "d" * 12, "e" * 12)
    assert all(name in listed for name in names)
    assert "37.6% match the whole caption, shapes-2 val, N 500" in shown.texts_of("li")[0]


def test_n_stands_in_the_cell_where_it_is_not_the_columns(tmp_path, page):
    several = [score("clip", "val", 80.0, extractor="x"), score("diversity", "val", 5.0, n=96, extractor="pixels")]
    (tmp_path / "r").mkdir()
    write_scores(tmp_path / "r" / "scores.json", several)
    assert page(told(tmp_path / "r")).texts_of("table")[0].endswith("clip-x80diversity-pixels5N 96")


def two_with_scores(tmp_path: Path, first: list[Score], second: list[Score]) -> list[ShownRun]:
    for name, scores in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        write_scores(tmp_path / name / "scores.json", scores)
    return [told(tmp_path / name) for name in "ab"]


def test_protocols_that_differ_are_marked_and_it_is_said_in_what(tmp_path, page):
    own = {"checkpoint": "c" * 64}
    first = [score("kid", "val", 1.0, extractor="x", **own), score("clip", "val", 80.0, extractor="x", **own)]
    second = [
        score("kid", "val", 2.0, extractor="x", guidance=2.0, **own),
        score("clip", "val", 81.0, n=400, extractor="x", guidance=2.0, **own),
    ]
    shown = page(*two_with_scores(tmp_path, first, second))
    assert re.search(r"kid-x1\.0002 ≠clip-x8081 ≠N 400", shown.texts_of("table")[0])
    assert "Protocols differ: a and b" in shown.texts_of("h3")
    rows = [text for text in shown.texts_of("tr") if text.startswith(("guidance", "n_fake"))]
    assert rows[0] == "guidance2.0all" and rows[1].startswith("n_fake500400clip-x@400 (val)")
    assert "another checkpoint" not in shown.texts_of("main")[0]


def test_equal_protocols_are_not_marked(tmp_path, page):
    same = [score("kid", "val", 1.0, extractor="x", checkpoint="c" * 64)]
    shown = page(*two_with_scores(tmp_path, same, [replace(same[0], value=2.0)]))
    assert "≠" not in shown.texts_of("table")[0] and not shown.all("div", **{"class": "warning"})


def test_scores_of_older_weights_say_so(tmp_path, page):
    old, new = (score("kid", "val", 1.0, extractor="x", checkpoint=digest * 64) for digest in "oc")
    head = page(*two_with_scores(tmp_path, [old], [new])).texts_of("th")
    assert [text for text in head if "N 500" in text] == [
        "ashapes-2 valN 500, of another checkpoint",
        "bshapes-2 valN 500",
    ]


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_parts_are_listed_with_their_time_and_the_sum(run, page):
    cells = page(run, **whole(run)).texts_of("td")
    k = cells.index(f"part {HOSTILE}")
    assert cells[k : k + 9] == [
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


def test_a_run_is_told_by_its_checkpoint_time_and_command(tmp_path, page):
    times = [0, 10, 20, 5000, 5010]  # resumed an hour later
    records = [{"step": k, "time": t, "images_per_second": 64.0} for k, t in enumerate(times)]
    write_journal(tmp_path / "r", records)
    (tmp_path / "r" / "command.json").write_text(
        json.dumps({"argv": ["/x/cli.py", "train", "a b"], "device": "cuda:0"})
    )
    run = told(tmp_path / "r", parameters=12345)
    assert run.seconds() == pytest.approx(40)
    shown = page(run)
    values = dict(zip(shown.texts_of("dt"), shown.texts_of("dd"), strict=True))
    expected = {
        "checkpoint": "step 100, 3,200 images seen",
        "parameters": "12,345",
        "training time": "40 s",
        "speed": "64 images/s",
        "hardware": "cuda:0",
    }
    assert expected.items() <= values.items()
    assert "t2i train 'a b'" in shown.texts_of("pre")


def test_configs_are_compared_key_by_key(tmp_path, page):
    runs = [told(tmp_path / "a"), told(tmp_path / "b", config={"learning_rate": 0.2, "own": 1})]
    rows = [text for text in page(*runs).texts_of("tr")]
    assert rows == ["keyab", "learning_rate0.10.2"]


def test_a_run_that_holds_nothing_says_what_is_missing(tmp_path, page):
    shown = page(told(tmp_path / "r"))
    text = shown.texts_of("main")[0]
    for words in ("no images: a dual encoder", "t2i eval score writes one", "t2i train writes one"):
        assert words in text


def test_what_is_damaged_is_said_in_a_line(run, page):
    (run.folder / "samples" / "step-00000001.png").write_text("no picture")
    (run.folder / "command.json").write_text("[1")
    (run.folder / "journal.jsonl").write_text('{"step": 1, "ti')
    text = page(told(run.folder)).texts_of("main")[0]
    assert "scores-c.json is not a score file" in text
    assert "t2i train writes one" in text and "fid-shapes" in text
    write_journal(run.folder, [{"step": 1, "time": 0}])
    text = page(told(run.folder)).texts_of("main")[0]
    assert "step-00000001.png: not a PNG" in text and "the journal holds no numbers yet" in text


def test_a_page_that_cannot_be_written_is_the_users_to_know(run, tmp_path):
    with pytest.raises(InputError, match="nowhere.*No such file or directory; free some space or name another folder"):
        write_report(tmp_path / "nowhere" / "out.html", "A run", [run])
    (tmp_path / "out.html").mkdir()
    with pytest.raises(InputError, match="out.html: Is a directory"):
        write_report(tmp_path / "out.html", "A run", [run])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cgan", "out.html"]


# ---- drawing for it ------------------------------------------------------------------------------------------------


def test_a_verdict_names_what_is_wrong():
    right = dict.fromkeys(("count", "layout", "shape", "colour", "size", "relation", "background", "strict"), True)
    assert verdict(right) == (True, "correct")
    wrong = {"strict": False, "colour": False, "relation": False}
    assert verdict({**right, **wrong}) == (False, "wrong colour, relation")
    assert verdict({**right, **wrong, "count": False}) == (False, "wrong number of objects")


def test_pictures_are_judged_by_what_they_show():
    data = open_dataset("shapes-1", "val", View(limit=4))
    drawn, captions = data.images(range(4)).copy(), [options[0] for options in data.captions]
    drawn[1] = 255
    found = judged(list(drawn), captions, [None] * 4)
    assert [one.verdict and one.verdict.right for one in found] == [True, False, True, True]
    other = judged(list(drawn), [*captions[:3], "a cat"], [None] * 4)
    assert [one.verdict for one in other] == [None] * 4, "the oracle understands none or all"


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a user's captioned images, with one caption as bad as possible."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 20), ("val", 5)):
        (root / split).mkdir()
        rows = []
        for k in range(count):
            save_png(pixels(1000 * count + k, 16), root / split / f"{k}.png")
            rows.append({"file_name": f"{k}.png", "text": HOSTILE if k == 0 else f"picture {k} of {split}"})
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def make_tokenizer_run(folder: Path, address: str) -> Path:
    values = {
        "data": {"address": address, "resolution": 16},
        "autoencoder": {"width": 8, "width_limit": 16, "grid": 4},
        "quantizer": {"codebook_size": 32, "dim": 4},
    }
    config = TokenizerConfig.model_validate(values)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    manifest = {"family": "vqvae", "images_seen": 56, "config": config.model_dump(mode="json"), "config_hash": "0" * 64}
    checkpoint.save(folder / "checkpoints", 7, {"model": Autoencoder(config).state_dict()}, manifest)
    return folder


@pytest.fixture(scope="module")
def three(own_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Writes runs of three families on a user's images."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("gan", "prior"):
        (root / name).mkdir()
    data = {"address": str(own_data), "resolution": 16}
    return [
        make_run(root / "gan", data=data),
        make_prior_run(root / "prior", data=data),
        make_tokenizer_run(root / "vqvae", str(own_data)),
    ]


def report(*words: object) -> int:
    return app.main(["eval", "report", *map(str, words)])


def test_runs_of_all_families_on_a_users_own_pictures(three, own_data, tmp_path, capsys):
    out = tmp_path / "out.html"
    assert report(*three, "--out", out) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"wrote {out}, ") and "knows rendered shapes" in said.err
    shown = Page(out.read_text("utf-8"))
    prompts = shown.texts_of("h4")[:5]
    assert HOSTILE in prompts and len(set(prompts)) == 5, "all of val, and each once"
    assert "script" not in {tag for tag, _ in shown.elements}
    for name in ("gan", "prior", "vqvae"):
        assert len([one for one in shown.all("img") if str(one["alt"]).startswith(f"{name}, for:")]) >= 10
    assert "✓" not in shown.texts_of("section")[0], "the oracle reads drawn shapes alone"
    assert "20 training images, features of shapes" in shown.texts_of("section")[2]
    assert re.search(r"vqvae \d+ dB", shown.texts_of("article")[3])
    real = open_dataset(str(own_data), "val", View(16))
    row = [options[0] for options in real.captions].index(HOSTILE)
    tokenizer = open_run(three[2], "x").tokenizer
    assert tokenizer is not None
    made = tokenizer.decode(tokenizer.encode(real.images([row])))[0]
    assert np.array_equal(images_of(shown, f"vqvae, for: {HOSTILE}")[0], made)


def test_runs_draw_what_eval_score_scored_and_its_scores_choose(tmp_path, page):
    run = make_run(tmp_path / "gan")
    keep = Samples()
    scores = score_run(ScoreOptions(target=str(run), n=30, metrics=("clip",), seed=3), keep=keep)
    write_scores(run / "scores-x.json", scores)
    keep.write(beside(run / "scores-x.json"))
    found = make_gallery(open_runs([run]), ReportOptions(runs=(str(run),), n=13, neighbours=0), lambda *_: None)
    assert found is not None and not found.neighbours
    values = np.sort(keep.values["clip-aligned@30"])
    best = found.extremes["gan"]
    assert best.among == "of 30 for shapes-1 val, by clip-aligned"
    assert [one.score for one in best.best] == pytest.approx(values[:-7:-1].tolist())
    assert [one.score for one in best.worst] == pytest.approx(values[:6].tolist())
    again = clip_scores(open_image_text(None), [one.image for one in best.worst], [one.caption for one in best.worst])
    assert again.tolist() == pytest.approx([one.score for one in best.worst], abs=0.01), "the very pictures"
    # of other weights than were scored, those that are drawn now are chosen among
    protocol = replace(read_scores(run / "scores-x.json")[0].protocol, checkpoint="0" * 64)
    write_scores(run / "scores-x.json", [replace(scores[0], protocol=protocol)])
    other = make_gallery(open_runs([run]), ReportOptions(runs=(str(run),), n=13, neighbours=0), lambda *_: None)
    assert other is not None and other.extremes["gan"].among == "of 13 for shapes-1 val, by clip-aligned"
    assert [len(group.real) for group in other.splits] == [12, 12]
    (note,) = other.notes
    assert note.startswith("gan has no record of its training data")


def test_copies_of_training_pictures_stand_first():
    train = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    made = train[[7, 3]] + np.float32([[2.0], [0.0]])
    captions = ["a", "b"]
    asked = Images("x", "val", ["0", "1"], captions, "", 8, lambda rows: iter(()))
    names = [f"training {k}" for k in range(50)]
    training = replace(asked, captions=names, chunks=lambda rows: iter([[pixels(k) for k in rows]]))
    pool = Pool(asked, [], [pixels(100), pixels(101)], np.zeros(2))
    found = neighbours.neighbours_of("all", pool, training, made, train[:1] + 1, train)
    first = found.nearest[0]
    assert first.generated.caption == "b" and first.training[0][0].caption == "training 3"
    assert first.training[0][1] == pytest.approx(0, abs=1e-6) and np.array_equal(first.training[0][0].image, pixels(3))
    distances = [distance for _, distance in first.training]
    assert distances == sorted(distances) and len(distances) == 3 and found.held_out == pytest.approx(8**0.5)


def test_a_dual_encoder_has_curves_and_no_pictures(tmp_path):
    from t2i.align.config import Config

    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "config.yaml").write_text(to_yaml(Config()))
    manifest = {"family": "align", "images_seen": 56, "config": Config().model_dump(mode="json")}
    checkpoint.save(tmp_path / "align" / "checkpoints", 7, {}, manifest)
    write_journal(tmp_path / "align", [{"step": 1, "time": 0, "loss": 1.0}])
    assert report(tmp_path / "align") == 0
    shown = Page((tmp_path / "align" / "report.html").read_text("utf-8"))
    assert "no images: a dual encoder makes none" in shown.texts_of("main")[0] and shown.path("loss")


def test_runs_of_different_data_are_warned_of(tmp_path, capsys):
    runs = [make_run(tmp_path / name, data={"address": f"shapes-{k}"}) for k, name in ((1, "a"), (2, "b"))]
    assert report(*runs, "-n", 2, "--neighbours", 0, "--out", tmp_path / "o.html", "--split", "val") == 0
    words = "b was trained on shapes-2, but the captions here are from shapes-1"
    shown = Page((tmp_path / "o.html").read_text("utf-8"))
    assert words in capsys.readouterr().err and words in shown.texts_of("div")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{gan}/../nowhere"], "nowhere does not exist; name a run directory of t2i train"),
        (["{gan}/text"], "text is not a run: it holds no checkpoints; name a run directory of t2i train"),
        (["{young}"], "young has no checkpoint yet; train until its first one"),
        (["{gan}", "{gan}/."], "gan is named twice; name each run once"),
        (["{gan}", "--out", "{here}"], "here.html exists; delete it, or name another file with --out"),
        (["{gan}", "--out", "{gan}/no/x.html"], "x.html cannot be written: there is no folder"),
        (["{gan}", "--split", "test"], "no split 'test'"),
        (["{gan}", "--data", "/no/such"], "'/no/such' not found"),
        (["{gan}", "--scorer", "/no/such"], "/no/such"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_left(three, tmp_path, capsys, words, message):
    young = tmp_path / "young"
    shutil.copytree(three[0], young)
    shutil.rmtree(young / "checkpoints")
    here = tmp_path / "here.html"
    here.write_text("kept")
    before = sorted(three[0].rglob("*"))
    places = {"gan": three[0], "young": young, "here": here}
    assert report(*(word.format(**places) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert sorted(three[0].rglob("*")) == before and here.read_text() == "kept"
