"""Trains an image tokenizer (VQ-VAE), which encodes an image as a grid of codes and decodes it again. Captions are only used
in validation, so any folder of images will do.

    t2i train vqvae --config vqvae-tiny --data shapes-2 --run-dir runs/vqvae
    torchrun --nproc_per_node 2 -m t2i.cli train vqvae --config vqvae-tiny --data shapes-2 --run-dir runs/vqvae

`t2i train prior` takes the run directory as `tokenizer.path`. To resume, run the same command again.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.cli import run_program
from t2i.data import Dataset
from t2i.data.loader import Loader
from t2i.data.mixture import open_training
from t2i.errors import InputError
from t2i.hardware import prepare_cpu
from t2i.images import ImageArray, grid, to_model, to_uint8
from t2i.metrics.reconstruction import psnr, ssim
from t2i.names import counted
from t2i.sampling.source import open_start
from t2i.training.initialise import Reads, initialise
from t2i.training.optimization import EMA, clip_gradients, gradient_norm
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import keep_best, note_validation, open_held_out_splits, oracle_names, oracle_scores
from t2i.vqvae.autoencoder import Autoencoder, Reconstruction
from t2i.vqvae.codebook_use import CodeUse
from t2i.vqvae.config import Config
from t2i.vqvae.discriminator import PatchDiscriminator
from t2i.vqvae.perceptual import load_lpips
from t2i.vqvae.step import Judges, autoencoder_loss, discriminator_loss

CHUNK = 50  # images reconstructed at once in validation
SHOWN, COLUMNS = 24, 12  # images in the sample grid


def open_splits(config: Config) -> tuple[Dataset, dict[str, Dataset]]:
    """Returns the training split and those held-out splits that the data has.

    Raises:
        InputError: the codebook has more codes than the data has tokens.
    """
    train = open_training(config.data, replay=config.replayed, bare=True)
    tokens = len(train) * config.autoencoder.grid**2
    codes = config.quantizer.codebook_size
    if codes > tokens:
        key = f"codebook_size {codes}"
        if config.quantizer.kind == "scalar":
            key = f"levels {config.quantizer.levels}, {codes} codes,"
        raise InputError(
            f"quantizer.{key} is more than the {tokens} tokens in all {counted(len(train), 'training image')} of "
            f"{config.data.address}, so some codes would never be used; lower it"
        )
    return train, open_held_out_splits(config.data, config.validation_n, bare=True)


@torch.no_grad()
def reconstruct(model: Autoencoder, images_BHWC: ImageArray, device: torch.device) -> ImageArray:
    """Returns uint8 images that were encoded to tokens and decoded again."""
    parts = [to_model(images_BHWC[i : i + CHUNK]).to(device) for i in range(0, len(images_BHWC), CHUNK)]
    return np.concatenate([to_uint8(model.decode(model.encode(part))) for part in parts])


def validate(model: Autoencoder, split: str, dataset: Dataset, run: Run) -> dict[str, float]:
    """Returns PSNR, SSIM and, for rendered shapes, the oracle's scores of the reconstructions; saves a grid for `val`."""
    images = dataset.images(range(len(dataset)))
    training = model.training
    model.eval()
    decoded = reconstruct(model, images, run.device)
    model.train(training)
    scores = {"psnr": float(psnr(decoded, images).mean()), "ssim": float(ssim(decoded, images).mean())}
    scores |= oracle_scores(decoded, [options[0] for options in dataset.captions])
    if split == "val":
        rows = range(0, min(SHOWN, len(images)), COLUMNS)
        above_and_below = [x for i in rows for part in (images, decoded) for x in part[i : min(i + COLUMNS, SHOWN)]]
        run.save_samples(grid(above_and_below, columns=min(COLUMNS, len(images))))
    return scores


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train, held_out = open_splits(config)
    lpips = load_lpips(config.loss.lpips_path) if config.loss.lpips else None

    with Run(run_dir, config, "vqvae") as run:
        # Starting weights, and a record of the data for later scores
        source = open_start(run, config)
        remember(run, train, config.data, start=source)
        run.identity.keep_held_out("val", held_out.get("val"))

        # Autoencoder, its average, and the networks that its reconstructions are judged by
        plain = Autoencoder(config).to(run.device)
        critic = PatchDiscriminator(config.discriminator).to(run.device) if config.loss.adversarial else None
        parts: dict[str, Any] = {"model": plain} | ({"discriminator": critic} if critic else {})
        initialise(run, config, source, parts, Reads())
        optimizer = torch.optim.Adam(plain.parameters(), config.learning_rate, betas=(0.9, 0.99))
        ema = EMA(plain, config.ema_halflife_images) if config.ema_halflife_images else None
        averaged = ema.module if ema else plain
        critic_optimizer = torch.optim.Adam(critic.parameters(), config.learning_rate, (0.5, 0.9)) if critic else None
        judges = Judges(lpips.to(run.device) if lpips else None, critic)

        # Parts of a checkpoint; the newest checkpoint is resumed
        parts |= {"optimizer": optimizer, "ema": ema, "discriminator_optimizer": critic_optimizer}
        for name, part in parts.items():
            if part is not None:
                run.register(name, part)
        val = held_out.get("val")
        names = ("psnr", "ssim", *oracle_names([options[0] for options in val.captions])) if val else None
        best = keep_best(run, averaged.state_dict, config.best_metric, names)
        run.resume()

        # Networks wrapped for the run's processes, and a loader that starts at the run's position
        model = run.prepare(plain, config.compile)
        shared_critic = run.prepare(critic, config.compile) if critic else None
        reading = config.dataloader_num_workers, run.quarantine, config.data.augment
        loader = Loader(train, config.train_batch_size, config.seed, run.position, *reading)
        use = CodeUse(plain.codes.codebooks, plain.codes.codebook_size, run.device)

        optimizers = [optimizer] if critic_optimizer is None else [optimizer, critic_optimizer]
        for batches in run.steps(loader, *optimizers):
            # Codebook usage, validation, and a checkpoint
            if run.due(config.validation_steps):
                used, perplexity = use.read()
                run.record({"use": used, "perplexity": perplexity})
                for split, dataset in held_out.items():
                    scores = run.on_main(lambda: validate(averaged, split, dataset, run))  # type: ignore[arg-type]  # noqa: B023
                    note_validation(run, scores, best if split == "val" else None, len(dataset), split)
                if run.step > getattr(config.quantizer, "warmup_steps", 0):
                    use.judge(used, perplexity, run.step, warn=run.is_main)
            if run.due(config.checkpointing_steps):
                run.save()

            # Real images of this step; there are none at the end of the run
            reals = [to_model(batch.images_BHWC.numpy()).to(run.device) for batch in batches]
            if not reals:
                break

            # Autoencoder step; the codebook's running averages must never take in latents that are not finite
            passes: list[Reconstruction] = []
            losses: list[Tensor] = []
            for real in run.accumulate(model, reals):
                output = model(real)
                loss, watch = autoencoder_loss(
                    output, real, judges, plain.decoder.last_weight, config.loss, run.step, run.autocast
                )
                run.accelerator.backward(loss)
                passes.append(Reconstruction(*(x.detach() for x in output)))
                losses.append(loss)
                run.note(watch)
            norm = clip_gradients(plain)
            latents = torch.cat([output.latents_BCHW for output in passes])
            indices = torch.cat([output.indices_BLQ for output in passes])
            sound = run.judge(*losses, norm, latents)
            if sound:
                optimizer.step()
                plain.codes.observe(latents, indices)
                use.add(indices)
            optimizer.zero_grad()
            run.note({"gradient_norm": norm})

            # Discriminator step, on the same reconstructions
            if shared_critic and critic_optimizer and sound:
                losses = []
                for real, output in run.accumulate(shared_critic, list(zip(reals, passes, strict=True))):
                    loss, watch = discriminator_loss(shared_critic, real, output.images_BCHW)
                    run.accelerator.backward(loss)
                    losses.append(loss)
                    run.note(watch)
                norm = gradient_norm(shared_critic)
                if run.judge(*losses, norm):
                    critic_optimizer.step()
                critic_optimizer.zero_grad()
                run.note({"d_gradient": norm})

            # Averaged weights
            if ema and sound:
                ema.update(plain, run.images_per_step, run.images_seen + run.images_per_step)


if __name__ == "__main__":  # python -m t2i.train.vqvae
    run_program("train", "vqvae")
