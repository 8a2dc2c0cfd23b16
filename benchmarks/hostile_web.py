"""Sends hostile requests to the page of `t2i web` and counts what comes back; measures start, speed and memory.

    python benchmarks/hostile_web.py
    python benchmarks/hostile_web.py --requests 200

Every answer must be images, a message of one line, or an HTTP refusal; the server may print no traceback, and must make the
same image at the end as at the beginning. Exit status 1 otherwise. Needs the extra `t2i[web]`.
"""

import argparse
import base64
import io
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

PROMPT = "a small red star left of a large green ring"
USUAL = ["cgan", PROMPT, 1, "0", 1, 1, 1, "", 1, "", "prior", "two prompts", "a blue circle", 3]
PLACES = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "runs",
    ".",
    "~",
    "file:///etc/passwd",
    "C:\\windows",
    "a" * 300,
    "\x00",
    "prior/../cgan",
]
ODD: list[Any] = [
    None, True, -1, 0, 10**12, 1e308, -1e-308, 0.5, "", "many", [], [1] * 100, {}, {"a": {"b": []}}, float("nan"), float("inf"),
    float("-inf"), {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update"}, "9" * 5000, "٣", "²",
]  # fmt: skip
TEXTS = [
    "\ud800", "\udfff red", "\u202egnir", "\u200b", "\ufeff", "\x00", "\x1b[31mred", "🟥⭐", "赤い星", "é" * 4096,
    "a\u0301" * 2000,
    "<script>alert(1)</script>", "{{7*7}}", "%s%n", "'; DROP TABLE", "--seed 9", "-n", "$(id)", "`id`", "\r\n\r\n", "red\n" * 500,
]  # fmt: skip


class Server:
    """`t2i web` as a separate process, in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.began = time.perf_counter()
        program = [sys.executable, "-m", "t2i.cli", "web", "cgan"]
        self.process = subprocess.Popen(program, cwd=folder, stdout=self.log.open("wb"), stderr=subprocess.STDOUT)
        while (found := re.search(r"http://\S+", self.log.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text())
            time.sleep(0.05)
        self.url = found[0].rstrip(";")
        self.seconds = time.perf_counter() - self.began
        config = httpx.get(f"{self.url}config").json()
        self.functions = {one["api_name"]: one["id"] for one in config["dependencies"] if one["api_name"]}
        self.arguments = {one["api_name"]: one["inputs"] for one in config["dependencies"]}
        kinds = {one["id"]: one["type"] for one in config["components"]}
        self.kinds = {name: [kinds[k] for k in inputs] for name, inputs in self.arguments.items()}

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def ask(self, name: str, values: list[Any], canvas: Any = None, session: str | None = None) -> tuple[str, Any]:
        """Returns (kind of the answer, its content) of one job."""
        waiting = iter(values)
        fill = {"state": lambda: None, "imageeditor": lambda: canvas}
        data = [fill.get(kind, lambda: next(waiting, None))() for kind in self.kinds[name]] + list(waiting)
        session = session or f"{random.getrandbits(60):x}"
        body = {"data": data, "fn_index": self.functions[name], "session_hash": session}
        return self.post(json.dumps(body), session)

    def post(self, body: str, session: str) -> tuple[str, Any]:
        """Returns the same for any body."""
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{self.url}gradio_api/queue/join", content=body, headers=headers, timeout=60)
        if answer.status_code != 200:
            return f"HTTP {answer.status_code}", answer.text[:200]
        address = f"{self.url}gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", address, timeout=120) as stream:
            for line in stream.iter_lines():
                told = json.loads(line[5:]) if line.startswith("data:") else {}
                if told.get("msg") == "process_completed":
                    output = told["output"]
                    return ("images", output["data"]) if told["success"] else ("message", output.get("error"))
                if told.get("msg") == "unexpected_error":
                    return "message", told.get("message")
        return "nothing", None

    def image(self, data: Any) -> bytes:
        return httpx.get(data[0][0]["image"]["url"]).content


def requests_of(chance: random.Random, server: Server) -> Iterator[tuple[str, Any]]:
    """Yields (kind, function that sends a request and returns its answer) without end."""
    ask = server.ask

    def with_value(place: int, value: Any, name: str = "sample", canvas: Any = None) -> Any:
        values = list(USUAL)
        values[place] = value
        return lambda: ask(name, values, canvas)

    while True:
        button = chance.choice(["sample", "compare", "interpolate", "inpaint", "explain", "model"])
        yield "long prompt", with_value(1, chance.choice("xé 🟥") * chance.choice([4097, 10**5, 10**6]))
        yield "huge count", with_value(chance.choice([2, 13]), 10 ** chance.randint(2, 30), button)
        yield "bad type", with_value(chance.randrange(14), chance.choice(ODD), button)
        yield "path as model", with_value(chance.choice([0, 10]), chance.choice(PLACES), button)
        yield "odd text", with_value(chance.choice([1, 12]), chance.choice(TEXTS), button)
        yield "odd seed", with_value(3, chance.choice([*ODD, "NaN", "-0", "1e9", "0x10", " 7 ", "9" * 19]))
        yield "odd setting", with_value(chance.randrange(4, 10), chance.choice(ODD), button)
        yield "wrong number of values", partial(ask, button, (USUAL * 3)[: chance.randrange(40)])
        yield "odd canvas", with_value(0, "prior", "inpaint", odd_canvas(chance))
        yield "odd body", partial(server.post, odd_body(chance), "x")
        yield "file route", partial(fetched, server, chance.choice(PLACES))
        yield "upload", partial(uploaded, server, chance.choice([0, 10, 10**6, 3 * 10**7]))
        yield "usual", with_value(1, PROMPT)


def odd_canvas(chance: random.Random) -> Any:
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    files = [{"path": place} for place in PLACES] + [
        {"url": "http://169.254.169.254/latest/meta-data"}, {"url": "file:///etc/passwd"}, {"path": "http://127.0.0.1:1/a.png"},
        {"url": f"data:image/png;base64,{data}"}, {"path": f"data:image/png;base64,{data}"}, {"path": None}, "text", 3, None,
    ]  # fmt: skip
    one = chance.choice(files)
    return chance.choice(
        [one, {"background": one}, {"background": one, "layers": [one] * 3, "composite": one}, {"layers": 3}]
    )


def odd_body(chance: random.Random) -> str:
    return chance.choice([
        "", "{", "[]", "null", '{"data": NaN}', '{"data": [], "fn_index": 10000, "session_hash": "x"}', "[" * 5000,
        '{"data": null, "fn_index": "../", "session_hash": {"a": 1}}', '{"fn_index": 0}', '{"data": [], "fn_index": -1}',
    ])  # fmt: skip


def fetched(server: Server, path: str) -> tuple[str, Any]:
    try:
        answer = httpx.get(f"{server.url}gradio_api/file={path}", timeout=30)
    except httpx.InvalidURL:
        return "HTTP none", "no URL"
    return f"HTTP {answer.status_code}", None


def uploaded(server: Server, size: int) -> tuple[str, Any]:
    files = {"files": ("../../evil\x00.png", b"\x89PNG" + b"0" * size)}
    try:
        answer = httpx.post(f"{server.url}gradio_api/upload", files=files, timeout=60)
    except httpx.HTTPError as error:  # it may hang up on a body that is too long
        return "HTTP none", str(error)
    return f"upload {answer.status_code}", None


def good(kind: str, answer: tuple[str, Any]) -> bool:
    what, held = answer
    if what == "message":
        return isinstance(held, str) and 0 < len(held) < 400 and "\n" not in held and "Traceback" not in held
    if kind == "usual":
        return what == "images"
    if kind == "file route":
        return what.startswith(("HTTP 4", "HTTP none"))
    return what in ("images", "HTTP none") or what.startswith(("HTTP 4", "upload 2", "upload 4"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            return attack(server, given.requests, random.Random(given.seed))
        finally:
            server.process.terminate()
            server.process.wait()


def attack(server: Server, count: int, chance: random.Random) -> int:
    first = server.ask("sample", USUAL)
    print(
        f"page up after {server.seconds:.1f} s, first image after {time.perf_counter() - server.began:.1f} s, "
        f"{server.rss_mb():.0f} MB"
    )
    before = server.image(first[1])
    speed(server, "before")
    source = requests_of(chance, server)
    sent = [next(source) for _ in range(count)]

    def send(one: tuple[str, Any]) -> tuple[str, Any]:
        try:
            return one[1]()
        except Exception as error:
            return "broken", f"{type(error).__name__}: {error}"

    began = time.perf_counter()
    answers, memory = [], []
    with ThreadPoolExecutor(4) as pool:
        for number, answer in enumerate(pool.map(send, sent), 1):
            answers.append(answer)
            if number % (count // 8 or 1) == 0:
                memory.append(f"{server.rss_mb():.0f}")
    seconds = time.perf_counter() - began
    table: dict[str, Counter[str]] = {}
    bad = []
    for (kind, _), answer in zip(sent, answers, strict=True):
        table.setdefault(kind, Counter())[answer[0]] += 1
        if not good(kind, answer):
            bad.append((kind, answer))
    print(f"{count:,} requests in {seconds:.0f} s ({count / seconds:.1f}/s); MB on the way: {', '.join(memory)}")
    for kind, found in table.items():
        print(f"  {kind}: {', '.join(f'{what} {number}' for what, number in found.most_common())}")
    speed(server, "after")
    traces = server.log.read_text().count("Traceback")
    same = server.image(server.ask("sample", USUAL)[1]) == before
    print(f"{server.rss_mb():.0f} MB; tracebacks in the console: {traces}; the first image again: {same}")
    for kind, answer in bad[:20]:
        print("BAD", kind, str(answer)[:300])
    if traces:
        kinds = Counter(re.findall(r"^\w*(?:Error|Exception)\b.*", server.log.read_text(), re.M))
        print(*(f"{number} x {kind[:200]}" for kind, number in kinds.most_common(10)), sep="\n")
    print(f"bad answers: {len(bad)}")
    return int(bool(bad or traces or not same))


def speed(server: Server, when: str, count: int = 5) -> None:
    """Sends usual requests one after the other; the first of each model is not counted."""
    for model in ("cgan", "prior"):
        server.ask("sample", [model, *USUAL[1:]])
        began = time.perf_counter()
        for _ in range(count):
            assert server.ask("sample", [model, *USUAL[1:]])[0] == "images"
        print(f"{when}: {model}, one image a request: {count / (time.perf_counter() - began):.1f} requests/s")


if __name__ == "__main__":
    sys.exit(main())
