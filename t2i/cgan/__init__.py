"""The adversarial family. A new architecture is one file with a Generator and a Discriminator, and one line here."""

# name -> module with classes Generator(config, resolution, text dims) and Discriminator(config, resolution, pooled_dim)
ARCHITECTURES: dict[str, str] = {"resnet": "t2i.cgan.resnet"}
