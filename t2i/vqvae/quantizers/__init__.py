"""Lists the quantisers. A new one is one file with one class, and one line here."""

# quantizer.kind in a config -> "module:class"
QUANTIZERS: dict[str, str] = {
    "vector": "t2i.vqvae.quantizers.vector:VectorQuantizer",
    "scalar": "t2i.vqvae.quantizers.scalar:ScalarQuantizer",
    "residual": "t2i.vqvae.quantizers.residual:ResidualQuantizer",
    "simvq": "t2i.vqvae.quantizers.simvq:SimVQ",
}
