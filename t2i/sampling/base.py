"""Loads, describes and saves pipelines: the base class of `t2i.pipeline.TextToImagePipeline`, which adds sampling."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch

from t2i.errors import InputError
from t2i.families import FAMILIES, Sampler, parameters_of
from t2i.files import new_folder
from t2i.images import Fit
from t2i.names import number
from t2i.sampling import calls, hub, saved
from t2i.sampling.model_card import write_card
from t2i.sampling.saved import Stored

CARD_SEED = 0


class StoredPipeline:
    """A text encoder and a generator that was trained with it.

    Attributes:
        family: a key of `t2i.families.FAMILIES`.
        manifest: manifest of the checkpoint that holds the weights: step, config, digests, versions.
        guidance_scale, truncation: defaults for calls; saved with the pipeline.
        sampler: the generator; `pipe.sampler = pipe.sampler.tuned({...})` changes the settings of its family, which are
            saved too.
        home: the folder that was loaded: a run directory or a saved pipeline.
        run: `home` if that is a run directory, else None.
    """

    def __init__(self, sampler: Sampler, stored: Stored) -> None:
        self.sampler, self.text_encoder = sampler.tuned(stored.settings), stored.text
        self.family, self.manifest = stored.family, stored.manifest
        self.guidance_scale = sampler.guidance if stored.guidance_scale is None else stored.guidance_scale
        self.truncation = stored.truncation
        self.home, self.run = stored.home, stored.home if stored.is_run else None
        self._stored = stored
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        side = self._view()[0]
        size = parameters_of(self.sampler.components())
        words = FAMILIES[self.family].words
        return (
            f"{type(self).__name__}({words}, {side} x {side} pixels, {size:,} parameters, text encoder "
            f"{self.text_encoder.name}, step {self.manifest['step']:,} of {self.home}, on {self.device})"
        )

    @property
    def chosen(self) -> str | None:
        """Describes the validation score by which these weights were selected; None if they are the last of the run."""
        best = self.manifest.get("best")
        return (
            best and f"the best of the run by {best['metric']} on val ({number(best['value'])}), step {best['step']:,}"
        )

    @property
    def components(self) -> dict[str, Any]:
        """Returns the parts by name, including the text encoder."""
        return {"text_encoder": self.text_encoder} | {name: getattr(self.sampler, name) for name in self.sampler.parts}

    @property
    def dtype(self) -> torch.dtype:
        """Returns the type that the models compute in."""
        return torch.float32

    @classmethod
    def from_pretrained(
        cls,
        path_or_run: str | Path,
        device: str | torch.device = "cpu",
        subfolder: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a pipeline and moves it to `device`.

        Only safetensors files are read, and code that comes with a model never runs.

        Args:
            path_or_run: a run directory (its newest intact checkpoint; the best weights if there are any, else the averaged
                ones), a folder that `save_pretrained` wrote, the name of a model that ships with the package (`prior`, `cvae`,
                `cgan`, `emoji`), or `owner/name` on the hub.
            subfolder: the folder of the pipeline inside `path_or_run`.
            options: `cache_dir`, `revision`, `token`, `local_files_only` and `force_download` for the hub; other options
                of diffusers if they have no effect here, e.g. `torch_dtype=torch.float32`.

        Raises:
            InputError: the folder, the weights, the device or an option cannot be used.
        """
        options = calls.split_idle(options, calls.IDLE_LOADING, "from_pretrained")
        hub_options = {name: options.pop(name) for name in calls.HUB if name in options}
        known = ["device", "subfolder", *calls.HUB, *calls.IDLE_LOADING]
        calls.refuse_unknown(options, "from_pretrained", known)
        stored = saved.read(path_or_run, subfolder, hub_options)
        sampler = saved.build(stored)
        try:
            pipe = cls(sampler, stored)
        except InputError as error:
            raise InputError(f"{stored.home / saved.DEFAULTS}: {error}; correct or delete the file") from error
        return pipe.to(device)

    def to(self, *places: Any, device: Any = None, dtype: Any = None, silence_dtype_warnings: bool = False) -> Self:
        """Moves the generator to a device. The text encoder stays on its device.

        Args:
            places: a device, a dtype, or both, as for `torch.nn.Module.to`; the dtype must be float32.

        Raises:
            InputError: the device cannot be used, or the dtype is not float32.
        """
        for place in places:
            device, dtype = (device, place) if isinstance(place, torch.dtype) else (place, dtype)
        calls.split_idle({"dtype": dtype}, calls.IDLE_LOADING, "to()")
        if device is not None:
            self.device = calls.usable_device(device)
            self.sampler.to(self.device)
        return self

    def set_progress_bar_config(self, **_: Any) -> None:
        """Has no effect: calls print no progress, they report it to `callback_on_step_end`."""

    def _view(self) -> tuple[int, Fit]:
        """Returns the resolution of the run, and the way that training images were fitted to it."""
        data = self.manifest["config"]["data"]
        return data["resolution"], data["fit"]

    def save_pretrained(
        self,
        directory: str | Path,
        prompts: Sequence[str] | None = None,
        license: str = "other",
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        """Writes a folder that `from_pretrained` reads, with a model card. The folder appears whole or not at all.

        Args:
            directory: a new or an empty folder.
            prompts: prompts of the card's sample images. None: held-out captions of the embedded shapes; for other data
                the card has no images.
            license: license of the weights, as the hub spells it.
            dtype: type of the generator's weights in the file; bfloat16 halves its size. Weights are loaded as float32.
            options: options of diffusers that have no effect here, e.g. `safe_serialization=True`.

        Raises:
            InputError: the directory holds files or cannot be written, or an option is not supported.
        """
        options = calls.split_idle(options, calls.IDLE_SAVING, "save_pretrained")
        calls.refuse_unknown(options, "save_pretrained", ["prompts", "license", "dtype", *calls.IDLE_SAVING])
        if not isinstance(directory, str | Path) or not str(directory):
            raise InputError(f"save_pretrained needs the name of a new or an empty folder, got {directory!r:.40}")
        if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype must be torch.float32, torch.bfloat16 or torch.float16, got {dtype!r:.40}")
        self._save(Path(directory), Path(directory).name, prompts, license, dtype)

    def push_to_hub(
        self, repo_id: str, prompts: Sequence[str] | None = None, license: str = "other", private: bool = False
    ) -> str:
        """Uploads the folder that `save_pretrained` writes, with the token of `hf auth login`; returns its URL.

        Raises:
            InputError: there is no network, no login or no write access.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / "pipeline", repo_id, prompts, license)
            return hub.upload(Path(folder) / "pipeline", repo_id, private)

    def _save(
        self,
        directory: Path,
        name: str,
        prompts: Sequence[str] | None,
        license: str,
        dtype: torch.dtype | None = None,
    ) -> None:
        stored = self._stored._replace(
            components=self.sampler.components(),
            guidance_scale=self.guidance_scale,
            truncation=self.truncation,
            settings=self.sampler.settings(),
        )
        with new_folder(directory) as folder:
            saved.write(folder, stored, dtype)
            sample = partial(cast(Callable[..., Any], self), seed=CARD_SEED, output_type="uint8")
            write_card(folder, stored, name, license, prompts, lambda shown: sample(shown).images)
