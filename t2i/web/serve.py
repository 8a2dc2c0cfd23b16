"""Serves the page on this machine only, without requests to other hosts. Needs Gradio."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.errors import InputError
from t2i.web.models import Models

LOCAL = "127.0.0.1"
MOST_WAITING = 32  # jobs in the queue; further ones are refused
MOST_UPLOAD = "20mb"
MOST_BODY = 1 << 18  # bytes of a request, the settings of one job
MOST_VISITS = 100  # visits with a history; the least recently used one is dropped first
SPACE_GB = 8.0
# browsers load nothing from other hosts, whatever the page contains
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
LAUNCH: dict[str, Any] = {
    "state_session_capacity": MOST_VISITS,
    "max_file_size": MOST_UPLOAD,
    "share": False,
    "quiet": True,
    "prevent_thread_lock": True,
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
}
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
FETCHING = ("/file=http", "/proxy=")  # Gradio's routes that fetch from other hosts


class Guard:
    """Middleware before Gradio. It refuses requests that would make the server fetch URLs, read large bodies or fail.

    Args:
        headers: headers of every response.
    """

    def __init__(self, app: Any, headers: Mapping[str, str]) -> None:
        self.app = app
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = message | {"headers": [*message["headers"], *self.headers]}
            await send(message)

        status = _refusal(scope)
        if status is None:
            try:
                await self.app(scope, receive, send_with_headers)
                return
            except (ValueError, RecursionError, LookupError):  # NaN, deep nesting or an unknown event in a body
                if started:
                    raise
                status = 400
        await send_with_headers({"type": "http.response.start", "status": status, "headers": []})
        await send_with_headers({"type": "http.response.body", "body": b""})


def _refusal(scope: Any) -> int | None:
    """Returns the HTTP status of a request that is refused before its body is read, or None."""
    if any(part in scope["path"] for part in FETCHING):
        return 404
    if scope["method"] == "POST" and not scope["path"].endswith("/upload"):  # Gradio limits uploads
        length = dict(scope["headers"]).get(b"content-length", b"")
        return 411 if not length.isdigit() else 413 if int(length) > MOST_BODY else None
    return None


@contextmanager
def served(models: Models, port: int | None = None, local: bool = True) -> Iterator[Any]:
    """Serves the page at its `local_url` until the block ends, and then deletes all files that it wrote.

    Args:
        port: None: the first free port from 7860.
        local: False on a Space, which sets host and port, and shows the page in a frame.

    Raises:
        InputError: the port is in use, or the first model cannot be opened.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    # Gradio would keep records of 10,000 events, although monitoring is off
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = str(MOST_VISITS)
    with tempfile.TemporaryDirectory(prefix="t2i-web-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder

        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from t2i.web.layout import CSS, theme
        from t2i.web.page import make_page
        from t2i.web.work import Work

        # DNS rebinding: other sites whose name resolves to this machine must not be able to use the page
        hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"])] if local else []
        guard = Middleware(Guard, headers=HEADERS if local else {})
        page = make_page(models, Work(models, Path(folder) / "made"))
        page.queue(max_size=MOST_WAITING, api_open=False)
        address = {"server_name": LOCAL if local else None, "server_port": port}
        try:
            page.launch(**LAUNCH, **address, app_kwargs={"middleware": [*hosts, guard]}, theme=theme(), css=CSS)
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error}); name another with --port") from error
        try:
            yield page
        finally:
            page.close(verbose=False)


def serve_space(runs: Sequence[str]) -> None:
    """Serves the page of a Hugging Face Space until the process ends."""
    with served(Models(runs, None, SPACE_GB * 1e9), local=False) as page:
        page.block_thread()
