"""Trains an image tokenizer (VQ-VAE): pictures become a grid of tokens and come back. Captions only serve to check.

    t2i train vqvae --config vqvae-tiny --data shapes-2 --run-dir runs/vqvae
    torchrun --nproc_per_node 2 -m t2i.cli train vqvae --config vqvae-tiny --data shapes-2 --run-dir runs/vqvae

The run's directory is what a prior's `tokenizer.path` names. To resume, run the same command again.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from t2i.cli import run_program
from t2i.data import Dataset, open_dataset
from t2i.data.loader import Loader
from t2i.errors import InputError
from t2i.hardware import prepare_cpu
from t2i.images import ImageArray, grid, to_model, to_uint8
from t2i.metrics.reconstruction import psnr, ssim
from t2i.training.optimization import EMA, NonFiniteGuard, learning_rate, set_learning_rate
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import keep_best, note_validation, open_held_out_splits, oracle_names, oracle_scores
from t2i.vqvae import losses
from t2i.vqvae.autoencoder import Autoencoder, Reconstruction
from t2i.vqvae.codebook_use import CodeUse
from t2i.vqvae.config import Config
from t2i.vqvae.discriminator import PatchDiscriminator
from t2i.vqvae.perceptual import load_lpips

CHUNK = 50  # pictures of a validation at once
SHOWN, COLUMNS = 24, 12  # pictures of the sample grid


def open_splits(config: Config) -> tuple[Dataset, dict[str, Dataset]]:
    """The training split, and whatever held-out splits the data has.

    Raises:
        InputError: the codebook has more codes than the data has tokens.
    """
    train = open_dataset(config.data.address, "train", config.data.view(config.data.limit))
    tokens = len(train) * config.autoencoder.grid**2
    if config.quantizer.kind != "scalar" and config.quantizer.codebook_size > tokens:
        raise InputError(
            f"quantizer.codebook_size {config.quantizer.codebook_size} is more than the {tokens} tokens of all "
            f"{len(train)} training pictures of {config.data.address}, which cannot fill it; lower it"
        )
    return train, open_held_out_splits(config.data, config.validation_n)


@torch.no_grad()
def reconstruct(model: Autoencoder, images_BHWC: ImageArray, device: torch.device) -> ImageArray:
    """uint8 pictures through the tokens and back."""
    parts = [to_model(images_BHWC[i : i + CHUNK]).to(device) for i in range(0, len(images_BHWC), CHUNK)]
    return np.concatenate([to_uint8(model.decode(model.encode(part))) for part in parts])


def validate(model: Autoencoder, split: str, dataset: Dataset, run: Run) -> dict[str, float]:
    """PSNR and SSIM, of drawn shapes also what can be read from the reconstructions, and a sheet to look at."""
    images = dataset.images(range(len(dataset)))
    training = model.training
    model.eval()
    made = reconstruct(model, images, run.device)
    model.train(training)
    found = {"psnr": float(psnr(made, images).mean()), "ssim": float(ssim(made, images).mean())}
    found |= oracle_scores(made, [options[0] for options in dataset.captions])
    if split == "val":
        (run.directory / "samples").mkdir(exist_ok=True)
        rows = range(0, min(SHOWN, len(images)), COLUMNS)
        above_and_below = [x for i in rows for part in (images, made) for x in part[i : min(i + COLUMNS, SHOWN)]]
        sheet = grid(above_and_below, columns=min(COLUMNS, len(images)))
        sheet.save(run.directory / "samples" / f"step-{run.step:08d}.png")
    return found


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train, held_out = open_splits(config)
    lpips = load_lpips(config.loss.lpips_path) if config.loss.lpips else None

    with Run(run_dir, config, "vqvae") as run:
        remember(run, train, config.data)
        plain = Autoencoder(config).to(run.device)
        optimizer = torch.optim.Adam(plain.parameters(), config.learning_rate, betas=(0.9, config.adam_beta2))
        run.register("model", plain)
        run.register("optimizer", optimizer)
        ema = EMA(plain, config.ema_halflife_images, config.ema_ramp) if config.ema_halflife_images else None
        if ema:
            run.register("ema", ema)
        critic = PatchDiscriminator(config.discriminator).to(run.device) if config.loss.adversarial else None
        critic_parameters = list(critic.parameters()) if critic else []
        critic_optimizer = torch.optim.Adam(critic_parameters, config.learning_rate, (0.5, 0.9)) if critic else None
        if critic and critic_optimizer:
            run.register("discriminator", critic)
            run.register("discriminator_optimizer", critic_optimizer)
        if lpips:
            lpips.to(run.device)
        val = held_out.get("val")
        names = ("psnr", "ssim", *oracle_names([options[0] for options in val.captions])) if val else ()
        averaged = ema.module if ema else plain
        best = keep_best(run, averaged.state_dict, config.best_metric, names)
        run.resume()
        model = run.prepare(plain, config.compile)
        judge_of = run.prepare(critic, config.compile) if critic else None

        place = (run.images_seen, run.process_index, run.num_processes, config.dataloader_num_workers, run.quarantine)
        run.loader = loader = Loader(train, config.train_batch_size, config.seed, *place, config.data.augment)
        guard = NonFiniteGuard(run.rollback)
        use = CodeUse(plain.codes.codebooks, plain.codes.codebook_size, run.device)
        parameters = list(plain.parameters())

        def loss_of(made: Reconstruction, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss = losses.reconstruction(made.images_BCHW, real, config.loss)
            watch = {"reconstruction": loss.detach(), "quantizer_loss": made.loss.detach()}
            if lpips:
                distance = lpips(made.images_BCHW.float(), real).mean()
                loss, watch["lpips"] = loss + config.loss.lpips * distance, distance.detach()
            share = losses.ramp(run.step, config.loss.adversarial_start, config.loss.adversarial_ramp)
            if critic and share:
                critic.requires_grad_(False)
                with run.accelerator.autocast():
                    adversarial = losses.hinge_generator(critic(made.images_BCHW).float())
                critic.requires_grad_(True)
                weight = losses.adaptive_weight(
                    loss, adversarial, plain.decoder.last_weight, config.loss.adaptive_limit
                )
                loss = loss + share * config.loss.adversarial * weight * adversarial
                watch |= {"adversarial": adversarial.detach(), "adaptive_weight": weight}
            return loss + made.loss, watch

        def synced(module: nn.Module, last: bool) -> AbstractContextManager:
            return nullcontext() if last else run.accelerator.no_sync(module)

        def teach_critic(reals: list[Tensor], fakes: list[Tensor], lr: float) -> Mapping[str, Tensor]:
            assert judge_of is not None and critic_optimizer is not None
            set_learning_rate(critic_optimizer, lr)
            seen: dict[str, Tensor] = {}
            for i, (real, fake) in enumerate(zip(reals, fakes, strict=True)):
                with synced(judge_of, i == len(reals) - 1):
                    on_real, on_fake = judge_of(torch.cat([real, fake])).float().chunk(2)
                    loss = losses.hinge_discriminator(on_real, on_fake)
                    run.accelerator.backward(loss)
                seen = {"d_loss": loss.detach(), "d_real": on_real.detach().mean(), "d_fake": on_fake.detach().mean()}
            norm = nn.utils.get_total_norm([p.grad for p in critic_parameters if p.grad is not None])
            if run.all_finite(seen["d_loss"], norm):
                critic_optimizer.step()
            critic_optimizer.zero_grad()
            return seen | {"d_gradient": norm}

        while run.step < run.total_steps and not run.stopping():
            lr = learning_rate(
                run.step, run.total_steps, config.learning_rate, config.lr_warmup_steps, config.lr_final_factor
            )
            set_learning_rate(optimizer, lr)
            batches = [next(loader) for _ in range(config.gradient_accumulation_steps)]
            reals = [to_model(batch.images_BHWC.numpy()).to(run.device) for batch in batches]
            passes: list[Reconstruction] = []
            watch: dict[str, Tensor] = {}
            for i, real in enumerate(reals):
                with synced(model, i == len(reals) - 1):
                    made = model(real)
                    loss, watch = loss_of(made, real)
                    run.accelerator.backward(loss)
                passes.append(Reconstruction(*(x.detach() for x in made)))
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            latents = torch.cat([made.latents_BCHW for made in passes])
            indices = torch.cat([made.indices_BLQ for made in passes])
            # the latents too: a codebook that follows them would keep what is not finite for good
            finite = run.all_finite(loss, norm, latents)
            sound = guard.check(finite, run.step, batches[0].sample_ids.tolist())
            if sound:
                optimizer.step()
                plain.codes.observe(latents, indices)
                use.add(indices)
            optimizer.zero_grad()
            if critic and sound:
                watch |= teach_critic(reals, [made.images_BCHW for made in passes], lr)

            images = config.train_batch_size * len(reals) * run.num_processes
            run.advance(images)
            if ema and sound:
                ema.update(plain, images, run.images_seen)
            run.note(watch | {"loss": loss, "gradient_norm": norm, "learning_rate": lr})

            if run.due(config.validation_steps):
                used, perplexity = use.read()
                run.record({"use": used, "perplexity": perplexity})
                for split, dataset in held_out.items():
                    found = run.on_main(lambda: validate(averaged, split, dataset, run))  # type: ignore[arg-type]  # noqa: B023
                    note_validation(run, found, best if split == "val" else None, split)
                if run.step > config.quantizer.warmup_steps:
                    use.judge(used, perplexity, run.step, warn=run.is_main)
            if run.due(config.checkpointing_steps):
                run.save()


if __name__ == "__main__":  # python -m t2i.train.vqvae
    run_program("train", "vqvae")
