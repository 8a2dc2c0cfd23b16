"""`--set` values that make each program small enough for a test."""

SMALL = [
    *("data.limit=64", "data.resolution=16", "train_batch_size=4", "log_steps=1", "validation_steps=1000"),
    *("mixed_precision=no", "device=cpu"),
]


GAN = [
    *("generator={width: 8, width_limit: 16, w_dim: 16, z_dim: 8}", "text={encoder: bow}", "loss.negatives=8"),
    *("discriminator={width: 8, width_limit: 16, feature_dim: 16}", "guidance.encoder=none"),
]


ALIGN = [
    *("text_tower={width: 16, depth: 1, heads: 2}", "image_tower={width: 16, width_limit: 16}", "embedding=16"),
    *("train_batch_size=16", "image_weight=5", "kl_weight=0.001"),
]


VQVAE = [
    *("autoencoder={width: 8, width_limit: 16, grid: 4}", "quantizer={codebook_size: 16, dim: 4, warmup_steps: 1}"),
    *("quantizer.revival_steps=2", "ema_halflife_images=16", "loss.adversarial=0.5", "loss.adversarial_start=1"),
    "discriminator={width: 8, halvings: 1}",
]
