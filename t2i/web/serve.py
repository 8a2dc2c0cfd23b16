"""Serves the page on this machine, so that nothing else can use it and it asks nobody else for anything. Needs Gradio."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.errors import InputError
from t2i.web.models import Models

LOCAL = "127.0.0.1"
MOST_WAITING = 32  # jobs in the queue; the next one is refused
MOST_UPLOAD = "20mb"
MOST_BODY = 1 << 18  # bytes of a request: the settings of one job
MOST_VISITS = 100  # whose history is kept; the one used longest ago is forgotten first
SPACE_GB = 8.0
# a browser that is told this loads nothing from elsewhere, whatever the page asks for
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
FETCHING = ("/file=http", "/proxy=")  # Gradio's routes that fetch from elsewhere for the browser


class Guard:
    """Middleware before Gradio: it refuses what would make the server fetch, hold or choke on what a stranger sends.

    Args:
        headers: of every answer.
    """

    def __init__(self, app: Any, headers: Mapping[str, str]) -> None:
        self.app = app
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_with_headers(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = message | {"headers": [*message["headers"], *self.headers]}
            await send(message)

        status = _refusal(scope)
        if status is None:
            try:
                await self.app(scope, receive, send_with_headers)
                return
            except (
                ValueError,
                RecursionError,
                LookupError,
            ):  # NaN or deep brackets in a body, an event that is not there
                if begun:
                    raise
                status = 400
        await send_with_headers({"type": "http.response.start", "status": status, "headers": []})
        await send_with_headers({"type": "http.response.body", "body": b""})


def _refusal(scope: Any) -> int | None:
    """The HTTP status that refuses a request before it is read; None: it may go on."""
    if any(part in scope["path"] for part in FETCHING):
        return 404
    if scope["method"] == "POST" and not scope["path"].endswith("/upload"):  # whose limit is Gradio's
        length = dict(scope["headers"]).get(b"content-length", b"")
        return 411 if not length.isdigit() else 413 if int(length) > MOST_BODY else None
    return None


@contextmanager
def served(models: Models, port: int | None = None, local: bool = True) -> Iterator[Any]:
    """The page at its `local_url` until the block ends, when everything it wrote is deleted.

    Args:
        port: None: the first free one from 7860.
        local: False on a Space, which decides host and port, and shows the page in a frame of its own.

    Raises:
        InputError: the port is taken, or the first model cannot be opened.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    with tempfile.TemporaryDirectory(prefix="t2i-web-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder

        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from t2i.web.layout import CSS, theme
        from t2i.web.page import make_page
        from t2i.web.work import Work

        # a page elsewhere whose name leads here must not be able to use this one
        hosts = [Middleware(TrustedHostMiddleware, allowed_hosts=[LOCAL, "localhost"])] if local else []
        guard = Middleware(Guard, headers=HEADERS if local else {})
        page = make_page(models, Work(models, Path(folder) / "made"))
        page.queue(max_size=MOST_WAITING, api_open=False)
        try:
            page.launch(
                server_name=LOCAL if local else None,
                server_port=port,
                app_kwargs={"middleware": [*hosts, guard]},
                state_session_capacity=MOST_VISITS,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                max_file_size=MOST_UPLOAD,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                theme=theme(),
                css=CSS,
            )
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error}); name another with --port") from error
        try:
            yield page
        finally:
            page.close(verbose=False)


def serve_space(runs: Sequence[str]) -> None:
    """The page as a Hugging Face Space shows it, until the process ends."""
    with served(Models(runs, None, SPACE_GB * 1e9), local=False) as page:
        page.block_thread()
