"""Event handlers of the page: they run the jobs of `work`, and show images or messages. Needs Gradio."""

import secrets
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from PIL import Image

from t2i.errors import InputError
from t2i.web.layout import BETWEEN, Layout
from t2i.web.models import Models
from t2i.web.work import JobResult, Stop, Work

MOST_ENTRIES = 30  # entries in the history of a visit
MOST_CHARACTERS = 300  # of a message
CANVAS = 512  # pixels per side of an image on the canvas
KEPT_SECONDS = 24 * 3600  # uploads and images stay in Gradio's cache for this time


class Page(gr.Blocks):
    """Blocks that answer malformed requests with a message instead of a traceback on the console."""

    async def process_api(self, *words: Any, **named: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*words, **named)
        except gr.Error as error:
            error.print_exception = False
            error.message = _short(error.message)
            raise
        except Exception as error:
            raise gr.Error(f"this request is malformed: {_short(str(error))}", print_exception=False) from error


def _short(text: str) -> str:
    """Returns the text in one line, cut to MOST_CHARACTERS."""
    return " ".join(text.split())[:MOST_CHARACTERS]


def make_page(models: Models, work: Work) -> Page:
    """Builds the page with all its events, and loads the first model."""
    with Page(title="t2i", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS), fill_width=True) as page:
        names = list(models.places())
        layout = Layout(names, models.open(names[0]).card)
        Handlers(layout, models, work).bind(page)
    return page


def call(job: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the result of a job; shows an error as a message on the page."""
    try:
        return job(*arguments)
    except InputError as error:
        raise gr.Error(str(error), title="No images") from error
    except Exception as error:  # a bug: the console has the traceback, which the page must not show
        traceback.print_exc()
        raise gr.Error(f"this is a bug in t2i ({type(error).__name__}); the console has the details") from error


class Handlers:
    """Event handlers of one page. They receive the values of all settings, and return updates of components."""

    def __init__(self, layout: Layout, models: Models, work: Work) -> None:
        self.at, self.models, self.work = layout, models, work
        self.stops: dict[str, Stop] = {}  # of the running jobs, by visit

    def bind(self, page: Page) -> None:
        """Connects components and handlers; only one job of a model runs at a time."""
        at = self.at
        inputs = {*at.settings.values(), at.history}
        history = [at.history, at.entries]
        job: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "scroll_to_output": True}
        make = [at.make.click, at.prompt.submit]
        outputs = [at.images, at.command, *history]
        both = [at.first, at.beside, at.command, *history]
        running: list[Any] = [
            gr.on(make, self.on_make, inputs, outputs, api_name="sample", **job),
            at.inpaint.click(self.on_inpaint, inputs | {at.canvas}, [at.filled, *history], api_name="inpaint", **job),
            at.compare.click(self.on_compare, inputs, both, api_name="compare", **job),
            at.explain.click(self.on_explain, inputs, [at.words, *outputs[1:]], api_name="explain", **job),
            at.interpolate.click(self.on_interpolate, inputs, [at.row, *outputs[1:]], api_name="interpolate", **job),
        ]
        quick: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": 4}
        of_model = [at.about, at.examples, at.why, at.inpainting, at.between, *at.knobs.values()]
        at.model.input(self.on_model, [at.model], of_model, api_name="model", **quick)
        hidden: dict[str, Any] = quick | {"api_visibility": "private"}
        page.load(self.on_load, [at.model, at.other], [at.model, at.other], **hidden)
        page.unload(self.on_stop)
        at.stop.click(self.on_stop, None, None, queue=False, cancels=running, **hidden)
        at.dice.click(lambda: str(secrets.randbits(31)), None, at.seed, **hidden)
        at.examples.click(lambda sample: sample[0], [at.examples], at.prompt, **hidden)
        at.take.click(self.on_take, [at.history], at.canvas, **hidden)
        restored = dict.fromkeys([*at.settings.values(), *of_model, at.images, at.command])
        at.entries.select(self.on_restore, [at.history], list(restored), **hidden)

    # ---- jobs: Gradio passes `request` and `progress` by their types --------------------------------------------------

    def on_make(self, values: dict[Any, Any], request: gr.Request, progress=gr.Progress()) -> Any:  # noqa: B008
        result = self._run(self.work.sample, request, progress, self._settings(values))
        return {self.at.images: result.images, self.at.command: result.command} | self._noted(values, result)

    def on_inpaint(self, values: dict[Any, Any], request: gr.Request, progress=gr.Progress()) -> Any:  # noqa: B008
        result = self._run(self.work.inpaint, request, progress, self._settings(values), values.get(self.at.canvas))
        return {self.at.filled: result.images} | self._noted(values, result)

    def on_compare(self, values: dict[Any, Any], request: gr.Request, progress=gr.Progress()) -> Any:  # noqa: B008
        first, beside = self._run(self.work.compare, request, progress, self._settings(values))
        both = first._replace(images=first.images + beside.images, command=f"{first.command}\n{beside.command}")
        shown = {self.at.first: first.images, self.at.beside: beside.images, self.at.command: both.command}
        return shown | self._noted(values, both)

    def on_explain(self, values: dict[Any, Any], request: gr.Request, progress=gr.Progress()) -> Any:  # noqa: B008
        result = self._run(self.work.explain, request, progress, self._settings(values))
        return {self.at.words: result.images, self.at.command: result.command} | self._noted(values, result)

    def on_interpolate(self, values: dict[Any, Any], request: gr.Request, progress=gr.Progress()) -> Any:  # noqa: B008
        result = self._run(self.work.interpolate, request, progress, self._settings(values))
        return {self.at.row: result.images, self.at.command: result.command} | self._noted(values, result)

    def _settings(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        settings = {name: values.get(component) for name, component in self.at.settings.items()}
        return settings | {"between": BETWEEN.get(str(settings["between"]))}

    def _run(self, job: Callable[..., Any], request: gr.Request, progress: gr.Progress, *arguments: Any) -> Any:
        """Runs a job that the visitor can stop; shows its warnings as messages."""
        visit, stop = str(request.session_hash), Stop()
        self.stops[visit] = stop
        try:
            result = call(job, *arguments, stop, lambda share: progress(share, desc="sampling"))
        finally:
            self.stops.pop(visit, None)
        results = [result] if isinstance(result, JobResult) else result
        for text in dict.fromkeys(text for result in results for text in result.warnings):
            gr.Warning(text)
        return result

    def _noted(self, values: Mapping[Any, Any], result: JobResult) -> dict[Any, Any]:
        """Returns updates that add an entry to the history, newest first."""
        settings = {name: values.get(component) for name, component in self.at.settings.items()}
        entries = [{"settings": settings, "result": result}, *(values.get(self.at.history) or [])][:MOST_ENTRIES]
        shown = [(entry["result"].images[0][0], entry["settings"]["prompt"][:60]) for entry in entries]
        return {self.at.history: entries, self.at.entries: shown}

    # ---- the rest ---------------------------------------------------------------------------------------------------

    def on_stop(self, request: gr.Request) -> None:
        if stop := self.stops.get(str(request.session_hash)):
            stop.requested = True

    def on_load(self, model: Any, other: Any) -> Any:
        """Updates the lists of models with runs that are new since the page was built."""
        names = list(self.models.places())
        return [gr.update(choices=names, value=name if name in names else names[0]) for name in (model, other)]

    def on_model(self, name: Any) -> Any:
        return self.at.of_model(call(self.models.open, name).card)

    def on_take(self, history: list[Any]) -> Any:
        """Puts the newest image on the canvas, enlarged for the brush."""
        if not history:
            raise gr.Error("there is no image yet; make one first")
        image = Image.open(history[0]["result"].images[0][0])
        times = max(1, CANVAS // image.width)
        large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        return {"background": large, "layers": [], "composite": large}

    def on_restore(self, history: list[Any], event: gr.SelectData) -> Any:
        """Restores the settings and images of an entry."""
        settings, result = history[event.index]["settings"], history[event.index]["result"]
        updates = self.on_model(settings["model"])
        for name, component in self.at.settings.items():
            updates[component] = (updates.get(component) or gr.update()) | {"value": settings[name]}
        return updates | {self.at.images: result.images, self.at.command: result.command}
