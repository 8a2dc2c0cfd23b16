"""A small prior with random weights, and inputs for it."""

import torch

from t2i.prior.config import Config
from t2i.prior.orders import Order, group_sizes
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextFeatures

GRIDS = {"flat": Grid(3, 4, 1, 11), "residual": Grid(2, 3, 2, 11)}
TOKENS, POOLED, LONGEST = 6, 10, 5


def make(
    order: str = "raster", grid: Grid = GRIDS["flat"], seed: int = 0, settled: bool = True, **loss: float
) -> Prior:
    """Returns a small prior; `settled` fills weights that start at zero, so that every part has an effect."""
    torch.manual_seed(seed)
    model = {"width": 32, "depth": 3, "heads": 2, "mlp_width": 48, "dropout": 0.0}
    quiet = {"label_smoothing": 0.0, "token_dropout": 0.0, "caption_dropout": 0.0} | loss
    config = Config.model_validate({"order": order, "model": model, "loss": quiet})
    prior = Prior(config, grid, TOKENS, POOLED, LONGEST)
    if settled:
        torch.nn.init.normal_(prior.head.weight, std=0.3)
        torch.nn.init.normal_(prior.modulation.weight, std=0.1)
    return prior


def text_of(count: int, seed: int = 0) -> TextFeatures:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(LONGEST) < torch.randint(1, LONGEST + 1, (count, 1), generator=g)
    return TextFeatures(torch.randn(count, LONGEST, TOKENS, generator=g), mask, torch.randn(count, POOLED, generator=g))


def codes_of(prior: Prior, count: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, prior.grid.codes, (count, prior.grid.slots), generator=g)


def order_of(prior: Prior, count: int, steps: int = 4, seed: int = 0) -> Order | None:
    if prior.query is None:
        return None
    uniforms = torch.rand(count, prior.grid.slots, generator=torch.Generator().manual_seed(seed))
    return Order(uniforms.argsort(dim=1), group_sizes(steps, prior.grid.slots, "linear"))
