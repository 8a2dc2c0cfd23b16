"""A patch discriminator (pix2pix; Isola et al., CVPR 2017), which gives one logit for each patch of an image.

Axes: B batch, C channels, H W image, h w patches.
"""

from torch import Tensor, nn

from t2i.vqvae.config import PatchDiscriminatorConfig


class PatchDiscriminator(nn.Module):
    """Strided convolutions with group normalisation, which unlike batch normalisation keeps images independent."""

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        widths = [min(config.width * 2**i, 8 * config.width) for i in range(config.halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (channels_in, channels) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if i < config.halvings - 1 else 1
            layers += [
                nn.Conv2d(channels_in, channels, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, channels),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Returns logits_Bhw, which are high for real images."""
        return self.layers(images_BCHW)[:, 0]
