"""Text-to-image generative modelling: frozen text encoders, conditional GANs, scores one can trust."""

__version__ = "0.1.0"
