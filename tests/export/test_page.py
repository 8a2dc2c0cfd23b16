"""The page that samples in a browser gives the same images as the folder's graphs in Python."""

import base64
import io
import json
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from builders import tiny_text_models
from builders.exportable_runs import RUNS
from builders.tiny_run import CAPTIONS
from t2i import seeding
from t2i.cli import app
from t2i.data.captions import clean_caption
from t2i.export.page import PACKAGES
from t2i.export.runner import ExportedModel
from t2i.export.text import text_part
from t2i.images import to_uint8
from t2i.pipeline import TextToImagePipeline
from t2i.sampling.prompts import image_seed
from t2i.text import TextConfig, fit_encoder

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "node_modules"  # npm install onnxruntime-web @huggingface/tokenizers
READY = "#go:enabled, #message.wrong"
ODD = [
    "a  small\tred star\u00a0\u200b",
    "Don't STOP; it's 3.5 \u2014 cafe\u0301 na\u00efve \u039f\u0394\u039f\u03a3",
    "\u8d64\u3044\u661f \U0001f7e5\u2b50 x_y 12ab",
    "<b>quokka</b> the bird\u2019s-eye \x1c view \x85 end",
    "red " * 40,
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    if missing := [name for name in PACKAGES if not (NODE / name).is_dir()]:
        pytest.skip(f"{missing[0]} is not in node_modules: npm install {' '.join(PACKAGES)}")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    """Serves a folder, with the packages of npm in it, and returns its address."""
    servers = []

    def serve(folder: Path) -> str:
        if not (folder / "node_modules").exists():
            (folder / "node_modules").symlink_to(NODE)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def opened(browser, address: str, width: int = 1280):
    tab = browser.new_page(viewport={"width": width, "height": 844})
    tab.set_default_timeout(120_000)
    tab.goto(address)
    tab.wait_for_selector(READY)
    assert tab.inner_text("#message") == "ready"
    return tab


@pytest.mark.parametrize("name", RUNS)
def test_the_page_makes_the_images_of_the_graphs(browser, served, exported, name):
    run, folder = exported(name)
    tab = opened(browser, served(folder), 390)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.fill("#prompt", f"  {CAPTIONS[1]} ")
    tab.fill("#seed", "5")
    tab.fill("#number", "2")
    tab.click("#go")
    tab.wait_for_selector(READY)
    assert re.fullmatch(r"2 images in [\d.]+ s", tab.inner_text("#message"))
    seeds = [image_seed(5, CAPTIONS[1], k) for k in range(2)]
    assert [text.split()[1] for text in tab.locator("figcaption").all_inner_texts()] == [str(seed) for seed in seeds]
    ids, mask = text_part(TextToImagePipeline.from_pretrained(run).text_encoder, CAPTIONS[:1]).tokenize(
        [CAPTIONS[1]] * 2
    )
    expected = ExportedModel(folder).images(ids.numpy(), mask.numpy(), seeds)
    for link, levels in zip(tab.locator("figcaption a").all(), to_uint8(torch.from_numpy(expected)), strict=True):
        data = base64.b64decode(str(link.get_attribute("href")).partition(",")[2])
        found = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.abs(found.astype(int) - levels).max() <= 1
    assert tab.evaluate("document.documentElement.scrollWidth") == 390  # nothing hangs over the edge of a phone
    assert {url.split("/")[2] for url in asked if url.startswith("http")} <= {tab.url.split("/")[2]}
    tab.close()


def test_numbers_prompts_and_mistakes(browser, served, exported):
    tab = opened(browser, served(exported("cgan")[1]))

    def call(name: str, *values) -> list:
        """Calls a function of the script; integers become BigInts."""
        return tab.evaluate(
            "async ([name, values]) => { const found = (await import('/page.js'))[name](...values); "
            "return typeof found === 'bigint' ? String(found) : typeof found === 'string' ? found : [...found]; }",
            [name, values],
        )

    for seed in (0, 7, 2**63 - 1):
        big = f"BigInt('{seed}')"
        found = {
            name: np.array(tab.evaluate(f"async () => [...(await import('/page.js')).{call}]"))
            for name, call in {
                "uniform": f"uniform({big}, 'sample/order', 3, 50)",
                "normal": f"normal({big}, 'sample/z', 0, 51)",
                "gumbel": f"gumbel({big}, 5, 300)",
            }.items()
        }
        assert np.array_equal(found["uniform"], seeding.uniform(seed, "sample/order", [3], 50)[0])
        np.testing.assert_allclose(found["normal"], seeding.normal(seed, "sample/z", [0], 51)[0], atol=1e-6)
        np.testing.assert_allclose(found["gumbel"], seeding.gumbel(seed, [5], 300)[0], rtol=1e-6)
        for prompt, k in (("a red star", 0), ("\u00e9" * 3000, 3), ("x" * 120, 1)):
            told = tab.evaluate(
                f"async ([p, k]) => String((await import('/page.js')).imageSeed({big}, p, k))", [prompt, k]
            )
            assert int(told) == image_seed(seed, prompt, k)
    assert [call("cleanPrompt", text) for text in ODD] == [clean_caption(text) for text in ODD]

    for field, value, message in (
        ("#prompt", " \u200b ", "the prompt is empty"),
        ("#seed", "-1", "seed -1: give a whole number"),
        ("#seed", str(2**63), "give a whole number of at most 9223372036854775807"),
    ):
        before = tab.input_value(field)
        tab.fill(field, value)
        tab.click("#go")
        tab.wait_for_selector("#message.wrong")
        assert message in tab.inner_text("#message")
        tab.fill(field, before)
    tab.fill("#prompt", "red " * 40)
    tab.click("#go")
    tab.wait_for_selector("#message:not(.wrong):has-text('images in')")
    assert "the prompt was cut to" in tab.inner_text("#message")
    tab.close()


@pytest.mark.parametrize("kind", ["bow", "aligned", "clip", "t5", "bert"])
def test_ids_are_those_of_the_encoder(browser, served, tmp_path, kind):
    path = None
    if kind in ("clip", "t5", "bert"):
        path = str(tmp_path / kind)
        save = getattr(tiny_text_models, f"save_{kind}")
        save(Path(path), "projected") if kind == "clip" else save(Path(path))
    encoder = fit_encoder(TextConfig(encoder=kind, path=path, max_tokens=12), CAPTIONS[:1])
    texts = [*CAPTIONS, *(clean_caption(text) for text in ODD)]
    part = text_part(encoder, texts)
    (tmp_path / "tokenizer.json").write_text(part.file, "utf-8")
    shutil.copy(ROOT / "t2i" / "export" / "page.js", tmp_path)
    (tmp_path / "package.json").write_text(json.dumps({"dependencies": PACKAGES}))
    # of a page only what the script looks for when it starts
    (tmp_path / "index.html").write_text(
        "<form id=form><button name=go></button><button name=dice></button></form><p id=message>"
    )
    tab = browser.new_page()
    tab.goto(served(tmp_path))
    found = tab.evaluate(
        "async ([text, texts]) => { const ids = await (await import('/page.js')).tokenizerOf(text); "
        "return texts.map((one) => ids(one).ids); }",
        [{"file": "tokenizer.json", **part.described}, texts],
    )
    ids, mask = part.tokenize(texts)
    real = [row[:count].tolist() for row, count in zip(ids, (ids != part.described["pad"]).sum(dim=1), strict=True)]
    if kind == "clip":  # whose padding is its end
        real = [row[real].tolist() for row, real in zip(ids, mask, strict=True)]
    assert found == real
    tab.close()


def test_the_page_is_whole_without_a_browser(exported, tmp_path, capsys):
    _, folder = exported("cgan")
    text = (folder / "index.html").read_text("utf-8")
    assert "conditional GAN, 32 x 32 pixels" in text and "{{" not in text
    assert json.loads((folder / "package.json").read_text())["dependencies"] == PACKAGES
    assert app.main(["export", "cgan", str(tmp_path / "out"), "--page", "--format", "torch"]) == 2
    assert "--page runs ONNX files" in capsys.readouterr().err
