"""Builds the networks of a config from `ARCHITECTURES`."""

from importlib import import_module

from torch import nn

from t2i.cgan.config import Config


def build(config: Config, pooled_dim: int, token_dim: int) -> tuple[nn.Module, nn.Module]:
    """Returns (generator, discriminator) for text features of these widths, initialised with torch's generator."""
    module = import_module(ARCHITECTURES[config.architecture])
    resolution = config.data.resolution
    return (
        module.Generator(config.generator, resolution, pooled_dim, token_dim),
        module.Discriminator(config.discriminator, resolution, pooled_dim),
    )


# name -> module with classes Generator(config, resolution, text dims) and Discriminator(config, resolution, pooled_dim)
ARCHITECTURES: dict[str, str] = {"resnet": "t2i.cgan.resnet"}
