"""Components and style of the page. Needs Gradio."""

from typing import Any

import gradio as gr
from gradio.themes import Base, Default

from t2i.web.models import Card
from t2i.web.work import KNOBS, MOST_FRAMES, MOST_IMAGES

CSS = """
.t2i-images img { image-rendering: pixelated; }
.t2i-images .grid-wrap { min-height: 0 !important; height: auto !important; max-height: none !important; }
.t2i-images .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(152px, 44%), 1fr)) !important;
  height: auto !important; }
.t2i-images .thumbnail-lg { height: auto !important; display: flex; flex-direction: column; aspect-ratio: auto !important; }
.t2i-images .thumbnail-lg img { width: 100%; height: auto; aspect-ratio: 1; }
.t2i-images .caption-label { position: static !important; max-width: 100% !important; width: 100%; border: 0 !important;
  white-space: normal !important; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; text-align: center; }
.t2i-images:has(.preview) .grid-wrap, .t2i-images:has(.preview) { min-height: 420px !important; }
#history .grid-container { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)) !important; }
#dice { align-self: end; height: 2.6rem; }
footer { display: none !important; }
"""
BETWEEN = {"two prompts": "caption", "two noises of one prompt": "noise"}
SLIDERS = {
    "guidance": (0, 10, 0.1), "truncation": (0, 1.5, 0.05), "temperature": (0, 2, 0.05), "top_p": (0.05, 1, 0.05),
}  # fmt: skip
LABELS = {"top_k": "Top k (empty: all)", "steps": "Steps (empty: one per token)", "top_p": "Top p"}


def theme() -> Base:
    """Returns a theme with the visitor's system fonts, so that no font is fetched."""
    return Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


class Layout:
    """The components of the page, created inside a `gr.Blocks`.

    Args:
        names: names of all models.
        card: card of the first model.
    """

    def __init__(self, names: list[str], card: Card) -> None:
        self.history = gr.State([])
        gr.Markdown("## t2i: text to image")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self._left(names, card)
            with gr.Column(scale=3, min_width=300):
                self._right(names, card)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the components whose values decide an image, by the names of settings in `work`."""
        plain = ("model", "prompt", "number", "seed", "other", "between", "second", "frames")
        return {name: getattr(self, name) for name in plain} | self.knobs

    def of_model(self, card: Card) -> dict[Any, Any]:
        """Returns updates for a model: its settings with their defaults, its examples and its features."""
        choices = list(BETWEEN) if card.between_noises else list(BETWEEN)[:1]
        updates: dict[Any, Any] = {
            self.about: gr.update(value=card.words),
            self.examples: gr.update(samples=[[text] for text in card.examples], visible=bool(card.examples)),
            self.why: gr.update(value=card.no_inpainting or "", visible=card.no_inpainting is not None),
            self.inpainting: gr.update(visible=card.no_inpainting is None),
            self.between: gr.update(choices=choices, value=choices[0]),
        }
        for knob, component in self.knobs.items():
            default = card.knobs.get(knob)
            maximum = {"maximum": max(component.maximum, default or 0)} if knob in SLIDERS else {}
            updates[component] = gr.update(value=default, visible=knob in card.knobs, **maximum)
        return updates

    def _left(self, names: list[str], card: Card) -> None:
        self.model = gr.Dropdown(names, value=names[0], label="Model", filterable=False)
        self.about = gr.Markdown(card.words)
        self.prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, placeholder="describe the image")
        with gr.Row():
            self.make = gr.Button("Make images", variant="primary", elem_id="make", min_width=160)
            self.stop = gr.Button("Stop", min_width=70, scale=0)
        with gr.Row():
            self.number = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="Images", min_width=140)
            self.seed = gr.Textbox("0", label="Seed", max_lines=1, min_width=100)
            self.dice = gr.Button("Dice", min_width=70, scale=0, elem_id="dice")
        self.knobs: dict[str, Any] = {}
        with gr.Row():
            for name in KNOBS:
                shown: dict[str, Any] = {
                    "label": LABELS.get(name, name.capitalize()),
                    "value": card.knobs.get(name),
                    "visible": name in card.knobs,
                    "min_width": 180,
                }
                if name in SLIDERS:
                    low, high, step = SLIDERS[name]
                    self.knobs[name] = gr.Slider(low, high, step=step, **shown)
                else:
                    self.knobs[name] = gr.Textbox(max_lines=1, **shown)  # an empty gr.Number would send 0
        self.examples = gr.Dataset(
            label="Held-out captions",
            components=[gr.Textbox(visible=False)],
            samples=[[text] for text in card.examples],
            visible=bool(card.examples),
        )

    def _right(self, names: list[str], card: Card) -> None:
        with gr.Tabs():
            with gr.Tab("Images"):
                self.images = self._gallery("Images", "images")
                self.command = gr.Textbox(label="Command for the same images", buttons=["copy"], interactive=False)
            with gr.Tab("Inpaint"):
                self.why = gr.Markdown(card.no_inpainting or "", visible=card.no_inpainting is not None)
                with gr.Column(visible=card.no_inpainting is None) as self.inpainting:
                    self.canvas = gr.ImageEditor(
                        type="pil", image_mode="RGBA", label="Paint over the part to resample",
                        sources=["upload", "clipboard"], transforms=(), layers=False, format="png",
                        brush=gr.Brush(default_size=48, colors=["#ff2d87"], color_mode="fixed"), height=480,
                    )  # fmt: skip
                    with gr.Row():
                        self.take = gr.Button("Use the first image", min_width=160)
                        self.inpaint = gr.Button("Fill in", variant="primary", min_width=120)
                    self.filled = self._gallery("Filled in", "filled")
            with gr.Tab("Compare"):
                self.other = gr.Dropdown(names, value=names[-1], label="Other model", filterable=False)
                self.compare = gr.Button("Compare, same prompt and seeds", variant="primary")
                with gr.Row():
                    self.first = self._gallery("Model", "first", shown=True)
                    self.beside = self._gallery("Other model, with its default settings", "second", shown=True)
            with gr.Tab("Words"):
                gr.Markdown("Maps of the part of the first image that each word of the prompt affects.")
                self.explain = gr.Button("Explain the words", variant="primary")
                self.words = self._gallery("Words", "words")
            with gr.Tab("Interpolate"):
                choices = list(BETWEEN) if card.between_noises else list(BETWEEN)[:1]
                self.between = gr.Radio(choices, value=choices[0], label="Between")
                self.second = gr.Textbox(label="Second prompt", lines=1)
                self.frames = gr.Slider(2, MOST_FRAMES, value=8, step=1, label="Frames")
                self.interpolate = gr.Button("Interpolate", variant="primary")
                self.row = self._gallery("From the first to the last", "row")
        with gr.Accordion("History: click an entry to restore its settings and images", open=True):
            self.entries = self._gallery("History", "history", allow_preview=False, buttons=[])

    @staticmethod
    def _gallery(label: str, name: str, shown: bool = False, **more: Any) -> gr.Gallery:
        """Creates a gallery; `CSS` sets the number of images in a row."""
        buttons = {"buttons": ["download", "download_all", "fullscreen"], "height": "auto", "show_label": shown} | more
        return gr.Gallery(
            label=label, elem_id=name, elem_classes="t2i-images", object_fit="contain", interactive=False, **buttons
        )  # fmt: skip
