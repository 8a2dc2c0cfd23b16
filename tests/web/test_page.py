"""The served page: by `gradio_client`, by a browser, and as the folder of a Space."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.tiny_prior_run import make_prior_run
from builders.tiny_run import CAPTIONS, make_run
from t2i.cli import app
from t2i.pipeline import TextToImagePipeline

httpx = pytest.importorskip("httpx", reason="httpx is not installed, which comes with gradio (t2i[web])")


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert app.main(["web"]) == 2
    assert capsys.readouterr().err == (
        "error: the page needs Gradio, which is not installed; type pip install 't2i[web]'\n"
    )


def test_an_old_gradio_is_named(capsys, monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: object() if name == "gradio" else found(name))
    monkeypatch.setattr("t2i.sample.web.metadata.version", lambda name: "5.49.1")
    assert app.main(["web"]) == 2
    assert "the page needs Gradio 6, and 5.49.1 is installed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    make_run(folder / "runs" / "gan")
    make_prior_run(folder / "runs" / "order")
    return folder


@pytest.fixture(scope="module")
def page(made: Path) -> Iterator[Any]:
    pytest.importorskip("gradio", reason="gradio is not installed (t2i[web])")
    from t2i.web.models import Models
    from t2i.web.serve import served

    before = dict(os.environ), os.getcwd()
    os.chdir(made)
    try:
        with served(Models(["runs/gan"], Path("runs"), 1e9)) as page:
            yield page
    finally:
        os.chdir(before[1])
        os.environ.clear()
        os.environ.update(before[0])


@pytest.fixture(scope="module")
def client(page: Any, made: Path) -> Any:
    return new_client(page, made / "downloaded")


def new_client(page: Any, folder: Path) -> Any:
    from gradio_client import Client

    return Client(page.local_url, verbose=False, download_files=str(folder), analytics_enabled=False)


# settings in the order of the page; the history is of the visit and not sent
USUAL: dict[str, Any] = {
    "model": "runs/gan", "prompt": CAPTIONS[0], "number": 2, "seed": "5", "guidance": 1, "truncation": 1, "temperature": 1,
    "top_k": "", "top_p": 1, "steps": "", "other": "runs/order", "between": "two prompts", "second": CAPTIONS[1],
    "frames": 3,
}  # fmt: skip


def ask(client: Any, button: str, **changes: Any) -> Any:
    return client.predict(*(USUAL | changes).values(), api_name=f"/{button}")


def pixels(gallery: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(item["image"])) for item in gallery])


def test_the_page_is_of_this_machine_alone_and_asks_nobody_else(page):
    assert page.local_url.startswith("http://127.0.0.1:") and not page.share
    config = httpx.get(page.local_url + "config").json()
    assert config["analytics_enabled"] is False
    assert page._queue.ANALYTICS_MAX_EVENTS == 100  # events that Gradio keeps a record of, not 10,000
    answer = httpx.get(page.local_url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis.com" not in answer.text
    assert httpx.get(page.local_url, headers={"host": "evil.example"}).status_code == 400
    port = int(page.local_url.rstrip("/").rpartition(":")[2])
    mine = socket.gethostbyname(socket.gethostname())
    if not mine.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((mine, port), timeout=2)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "runs/gan/config.yaml", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
        "http://127.0.0.1:1/", "https://example.org/a.png",
    ],
)  # fmt: skip
def test_no_file_and_no_address_is_fetched_for_a_browser(page, path):
    for route in ("gradio_api/file=", "file=", "gradio_api/proxy="):
        assert httpx.get(page.local_url + route + path).status_code in (400, 403, 404), route


def test_a_client_gets_the_images_of_the_pipeline(client, made):
    gallery, command, _ = ask(client, "sample")
    expected = TextToImagePipeline.from_pretrained(made / "runs" / "gan")(CAPTIONS[0], 2, seed=5, output_type="uint8")
    assert np.array_equal(pixels(gallery), expected.images)
    assert [item["caption"] for item in gallery] == [f"seed {seed}" for seed in expected.seeds]
    assert command == f"t2i sample -n 2 --seed 5 runs/gan '{CAPTIONS[0]}'"
    image = Image.open(gallery[0]["image"])
    assert image.text["prompt"] == CAPTIONS[0] and image.text["seed"] == str(expected.seeds[0])  # type: ignore[attr-defined]
    assert Path(gallery[0]["image"]).name == f"a-small-red-circle_seed-{expected.seeds[0]}.png"


def test_the_other_tabs_by_a_client(client):
    first, beside, command, _ = ask(client, "compare")
    assert [len(pixels(one)) for one in (first, beside)] == [2, 2] and command.count("\n") == 1
    words, command, _ = ask(client, "explain")
    assert len(pixels(words)) == 4 and command.startswith("t2i explain --seed 5 runs/gan ")
    row, command, _ = ask(client, "interpolate")
    assert len(pixels(row)) == 3 and "--interpolate caption --frames 3" in command
    assert len(pixels(ask(client, "interpolate", between="two noises of one prompt")[0])) == 3


def test_history_is_of_one_visit(page, tmp_path):
    mine, other = new_client(page, tmp_path / "mine"), new_client(page, tmp_path / "other")
    ask(mine, "sample")
    assert [item["caption"] for item in ask(mine, "sample", prompt=CAPTIONS[3])[-1]] == [CAPTIONS[3], CAPTIONS[0]]
    assert len(ask(other, "sample")[-1]) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "x" * 5000}, "shorten it to at most 4,096"),
        ({"number": 10**9}, "maximum"),
        ({"number": "many"}, "this request is malformed"),
        ({"seed": "NaN"}, "a seed must be a whole number"),
        ({"model": "../../etc"}, "not in the list of choices"),
        ({"guidance": {"path": "/etc/passwd"}}, "this request is malformed"),
        ({"other": "9" * 5000}, "Value: 99999"),
    ],
)
def test_a_mistake_is_a_message_and_never_a_traceback(client, capfd, changes, says):
    with pytest.raises(Exception) as caught:
        ask(client, "sample", **changes)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 400, told
    assert says in told
    assert "Traceback" not in capfd.readouterr().err
    assert len(ask(client, "sample")[0]) == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"data": NaN}', 400),
        (b'{"data": [], "fn_index": 10000, "session_hash": "x"}', 400),
        (b"[" * 5000, 400),
        (b"{", 422),
        (b" " * 300_000, 413),
        (iter([b"{}"]), 411),
    ],
)
def test_a_body_that_is_no_request_is_refused_before_it_costs_anything(page, body, status, capfd):
    headers = {"content-type": "application/json"}
    answer = httpx.post(page.local_url + "gradio_api/queue/join", content=body, headers=headers)
    assert answer.status_code == status and "Traceback" not in capfd.readouterr().err


def test_an_unexpected_fault_shows_no_more_than_its_kind(client, capfd, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret path /home/me")

    monkeypatch.setattr(TextToImagePipeline, "__call__", fail)
    with pytest.raises(Exception, match="this is a bug in t2i") as caught:
        ask(client, "sample")
    assert "secret" not in str(caught.value) and "secret" in capfd.readouterr().err


def test_everything_is_deleted_at_the_end(made, monkeypatch):
    pytest.importorskip("gradio", reason="gradio is not installed (t2i[web])")
    from t2i.web.models import Models
    from t2i.web.serve import served

    monkeypatch.chdir(made)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
    with served(Models(["runs/gan"], None, 1e9)):
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.is_dir()
    assert not folder.exists()


def test_a_port_that_is_taken_is_one_line(made, monkeypatch, capsys):
    pytest.importorskip("gradio", reason="gradio is not installed (t2i[web])")
    monkeypatch.chdir(made)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_MAX_EVENTS", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["web", "runs/gan", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: port {port} cannot be used") and line.endswith("name another with --port")
    assert app.main(["web", "missing"]) == 2
    assert "missing does not exist" in capsys.readouterr().err


# ---- a Space -------------------------------------------------------------------------------------------------------


def test_a_space_starts_from_its_folder_alone(made, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio", reason="gradio is not installed (t2i[web])")
    monkeypatch.chdir(tmp_path)
    run = str(made / "runs" / "gan")
    assert app.main(["web", run, "--export", "my-space"]) == 0
    space = tmp_path / "my-space"
    assert {path.name for path in space.iterdir()} == {"app.py", "requirements.txt", "README.md", "model", "t2i"}
    _, header, _ = (space / "README.md").read_text().split("---", 2)
    fields = dict(line.split(": ", 1) for line in header.strip().splitlines())
    assert fields["title"] == "my-space" and fields["sdk"] == "gradio" and fields["app_file"] == "app.py"
    needed = (space / "requirements.txt").read_text().splitlines()
    assert needed[0] == f"gradio=={fields['sdk_version']}"
    assert any(line.startswith("torch>=") for line in needed) and not any("extra" in line for line in needed)
    assert [path.name for path in (space / "t2i" / "weights").iterdir()] == ["__init__.py"]

    expected = TextToImagePipeline.from_pretrained(run)(CAPTIONS[0], 2, seed=5, output_type="uint8").images
    moved = Path(shutil.move(space, tmp_path / "elsewhere"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(moved)}
    log = open(tmp_path / "log", "wb")
    process = subprocess.Popen([sys.executable, "app.py"], cwd=moved, env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(240):
            try:
                httpx.get(url)
                break
            except httpx.HTTPError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        from gradio_client import Client

        client = Client(url, verbose=False, download_files=str(tmp_path / "got"), analytics_enabled=False)
        assert np.array_equal(pixels(ask(client, "sample", model="model", other="model")[0]), expected)
    finally:
        process.terminate()
        process.wait()
        log.close()
    capsys.readouterr()
    assert app.main(["web", "--export", "b"]) == 2
    assert "--export b takes one RUN, got 0" in capsys.readouterr().err
    assert app.main(["web", run, "--export", "elsewhere"]) == 2
    assert "elsewhere holds files" in capsys.readouterr().err


# ---- a browser -----------------------------------------------------------------------------------------------------


def test_a_real_click_makes_a_real_image(page, made, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.local_url)
        tab.fill("label:has-text('Prompt') textarea", CAPTIONS[0])
        tab.fill("label:has-text('Seed') input, label:has-text('Seed') textarea", "5")
        tab.click("#make")
        tab.wait_for_selector("#images img", timeout=60_000)
        expected = TextToImagePipeline.from_pretrained(made / "runs" / "gan")(CAPTIONS[0], 4, seed=5)
        assert tab.locator("#images .caption-label").all_inner_texts() == [f"seed {seed}" for seed in expected.seeds]
        shown = tab.locator("#images img").first.get_attribute("src")
        (tmp_path / "shown.png").write_bytes(httpx.get(str(shown)).content)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "shown.png")), np.asarray(expected.images[0]))

        # the history brings all settings back
        tab.fill("label:has-text('Prompt') textarea", CAPTIONS[3])
        tab.fill("label:has-text('Seed') input, label:has-text('Seed') textarea", "6")
        tab.click("#history img")
        tab.wait_for_function(
            "text => document.querySelector('textarea').value === text", arg=CAPTIONS[0], timeout=60_000
        )
        assert tab.locator("label:has-text('Seed') input, label:has-text('Seed') textarea").input_value() == "5"
        assert tab.evaluate("document.documentElement.scrollWidth") == 390  # nothing hangs over the edge of a phone
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {page.local_url.split("/")[2]}
        browser.close()
