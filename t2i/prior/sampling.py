"""Samples images from a prior: codes from text, and images from codes by its tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from t2i import checkpoint, seeding
from t2i.errors import InputError, plain
from t2i.families import Components, ImageTokenizer
from t2i.families.tokenizers import built_tokenizer, tokenizer_beside
from t2i.images import ImageArray
from t2i.prior.config import Config, SamplingConfig
from t2i.prior.decoding import Known, decode
from t2i.prior.orders import Order
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextEncoder, TextFeatures
from t2i.trained import TrainedRun

ORDERS = 8  # number of orders that the likelihood of cells is averaged over
SHARE_OF_DECODING = 0.95  # share of the progress that counts for decoding codes; the tokenizer has the rest


class PriorSampler:
    """The averaged prior of a run and its tokenizer; the methods are documented in `t2i.families`."""

    parts = ("prior", "tokenizer")

    def __init__(self, config: Config, prior: Prior, tokenizer: ImageTokenizer) -> None:
        self.config, self.prior, self.tokenizer = config, prior.eval().requires_grad_(False), tokenizer
        self.sampling, self.compile = config.sampling, False
        self.cells = prior.grid.height, prior.grid.width
        self._known: Known | None = None  # one row, for all images

    @classmethod
    def components_of(cls, run: TrainedRun) -> Components:
        values = run.manifest["config"] | {"grid": run.manifest.get("grid")}
        (component,) = tokenizer_beside(run).components().values()
        return {"prior": (values, run.weights), "tokenizer": component}

    @classmethod
    def load(cls, components: Components, text: TextEncoder) -> Self:
        values, tensors = components["prior"]
        config = Config.kept({key: value for key, value in values.items() if key != "grid"})
        grid = TypeAdapter(Grid).validate_python(values.get("grid"))
        with torch.random.fork_rng(devices=[]):  # initialising weights must not use the caller's generator
            prior = Prior(config, grid, text.token_dim, text.pooled_dim, text.max_tokens)
        checkpoint.load_module(prior, tensors, "prior")
        tokenizer = built_tokenizer(components["tokenizer"])
        if (tokenizer.grid, tokenizer.codebooks, tokenizer.codebook_size) != (grid.width, grid.depth, grid.codes):
            raise InputError(
                "the tokenizer of this model has another grid or codebook than the one its prior was trained on"
            )
        return cls(config, prior, tokenizer)

    @property
    def guidance(self) -> float:
        return self.sampling.guidance

    def components(self) -> Components:
        (tokenizer,) = self.tokenizer.components().values()
        values = self.config.model_dump(mode="json") | {"grid": list(self.prior.grid)}
        return {"prior": (values, self.prior.state_dict()), "tokenizer": tokenizer}

    def to(self, device: torch.device) -> None:
        self.prior.to(device)
        self.tokenizer.to(device)

    def tuned(self, settings: Mapping[str, Any]) -> Self:
        """Settings are the keys of `SamplingConfig` except guidance, and `compile` (CUDA graphs on a GPU)."""
        known = {*SamplingConfig.model_fields, "compile"} - {"guidance"}
        if unknown := sorted(set(settings) - known):
            raise InputError(f"a prior has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
        other = copy(self)
        other.compile = bool(settings.get("compile", self.compile))
        other.sampling = self._with({key: value for key, value in settings.items() if key != "compile"})
        return other

    def keeping(self, image_HWC: ImageArray, redraw_hw: NDArray[np.bool_]) -> Self:
        redraw_S = np.repeat(redraw_hw.ravel(), self.prior.grid.depth)
        if self.config.order == "raster" and redraw_S.argmax() + redraw_S.sum() < len(redraw_S):
            raise InputError(
                "this prior was trained with order=raster, so it can keep only rows at the top; to fill in a mask, train one "
                "with order=random"
            )
        other = copy(self)
        other._known = Known(torch.from_numpy(~redraw_S)[None], self.tokenizer.encode(image_HWC[None]).flatten(1))
        return other

    def _with(self, settings: Mapping[str, Any]) -> SamplingConfig:
        try:
            return SamplingConfig.model_validate(self.sampling.model_dump() | dict(settings))
        except ValidationError as error:
            detail = error.errors()[0]
            name = ".".join(map(str, detail["loc"]))
            raise InputError(f"{name} {settings.get(name)}: {plain(detail['type'], detail['msg'])}") from error

    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.sampling.model_dump().items() if key != "guidance"}

    def sample(
        self,
        text: TextFeatures,
        seeds: Sequence[int],
        truncation: float = 1.0,
        guidance: float = 1.0,
        on_step: Callable[[float], None] | None = None,
    ) -> ImageArray:
        if truncation != 1:
            raise InputError(
                f"truncation {truncation:g} is a setting of a GAN; for a prior set temperature, top_k or top_p"
            )
        return self.decode(self.sample_codes(text, seeds, guidance, on_step))

    def sample_codes(
        self,
        text: TextFeatures,
        seeds: Sequence[int],
        guidance: float,
        on_step: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Returns indices_BS, one image per row of `text`."""
        sampling, known = self._with({"guidance": guidance}), self._known
        known = None if known is None else Known(*(part.expand(len(seeds), -1) for part in known))
        report = None if on_step is None else (lambda share: on_step(SHARE_OF_DECODING * share))
        codes_BS = decode(self.prior, text, seeds, sampling, known, report, self.compile)
        if on_step is not None:
            on_step(1.0)
        return codes_BS

    def codes(self, image_HWC: ImageArray) -> NDArray[np.int64]:
        return self.tokenizer.encode(image_HWC[None]).flatten().numpy()

    def sample_with_codes(self, text: TextFeatures, seed: int, guidance: float) -> tuple[NDArray[np.int64], ImageArray]:
        codes_BS = self.sample_codes(text, [seed], guidance)
        return codes_BS[0].cpu().numpy(), self.decode(codes_BS)[0]

    @torch.no_grad()
    def log_likelihood(self, text: TextFeatures, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """For order=random, averages over ORDERS orders of single codes, in which a cell comes early and late. The orders are
        the same for all captions."""
        grid, device, count = self.prior.grid, self.prior.code.device, len(text.pooled_BP)
        codes_BS = torch.from_numpy(codes).to(device).expand(count, -1)
        features = TextFeatures(*(part.to(device) for part in text))
        orders = self.orders(count)
        total = torch.zeros(count, grid.slots, dtype=torch.float64, device=device)
        for order in orders:
            log_p = self.prior.logits(codes_BS, features, order).double().log_softmax(dim=-1)
            total += log_p.gather(-1, codes_BS[..., None])[..., 0] / len(orders)
        return total.view(count, grid.height, grid.width, grid.depth).sum(dim=-1).cpu().numpy()

    def orders(self, count: int) -> list[Order | None]:
        """Returns the orders over which the likelihood of a cell is averaged, one code a step, for `count` equal images."""
        if self.prior.query is None:
            return [None]
        slots, device = self.prior.grid.slots, self.prior.code.device
        draws = [seeding.uniform(k, "likelihood/order", [0], slots) for k in range(ORDERS)]
        ranked = [torch.from_numpy(np.argsort(draw, axis=1)).to(device).expand(count, -1) for draw in draws]
        return [Order(one, (1,) * slots) for one in ranked]

    def decode(self, codes_BS: Tensor) -> ImageArray:
        """Returns the images of codes."""
        return self.tokenizer.decode(codes_BS.view(len(codes_BS), -1, self.tokenizer.codebooks))

    def reconstruct(self, images_BHWC: ImageArray) -> ImageArray:
        return self.tokenizer.decode(self.tokenizer.encode(images_BHWC))
