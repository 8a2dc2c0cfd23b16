"""Trains a text-conditional GAN on captioned images, conditioned by a frozen text encoder.

    t2i train cgan --config cgan-tiny --set text.path=runs/align --run-dir runs/shapes
    torchrun --nproc_per_node 2 -m t2i.cli train cgan --config cgan-tiny --set text.path=runs/align --run-dir runs/shapes

The run directory holds everything that `t2i sample` and `t2i eval` need. To resume, run the same command again.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from t2i import seeding
from t2i.cgan import rules
from t2i.cgan.architectures import build
from t2i.cgan.config import Config, RelativisticLoss
from t2i.cgan.guidance import make_guide
from t2i.cgan.sampling import sample_uint8
from t2i.cgan.step import GanMicro, discriminate, draw_micro, generate, nearest_noise, track_mean_latent
from t2i.cli import run_program
from t2i.data import Dataset
from t2i.data.augment import may_flip, warn_of_contradictions
from t2i.data.loader import Batch, Loader
from t2i.data.mixture import open_training
from t2i.extractors.aligned import AlignedExtractor
from t2i.hardware import prepare_cpu
from t2i.images import grid, to_model
from t2i.metrics.diversity import within_prompt_diversity
from t2i.sampling.source import open_start
from t2i.seeding import noise
from t2i.text import TextFeatures
from t2i.training.conditioning import Captions, prepare_captions, prepare_text
from t2i.training.initialise import Reads, initialise
from t2i.training.optimization import EMA, gradient_norm, learning_rate, require_gradients, trained
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import CHUNK, Validation, keep_best, note_validation, prepare_validation

SHOWN, DIVERSE = 24, 4  # prompts in the sample grid; images per prompt for measuring diversity


def validate(model: nn.Module, validation: Validation, run: Run) -> tuple[dict[str, float], float]:
    """Samples held-out prompts with fixed seeds and saves a grid; returns the scores and the diversity within a prompt."""
    prompts, text = validation.held_out.captions, validation.text
    parts = [range(len(prompts))[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    sampled = []
    for rows in parts:
        features = TextFeatures(*(x[rows] for x in text))
        sampled.append(sample_uint8(model, noise(rows, model.config.z_dim), features))  # type: ignore
    images = np.concatenate(sampled)
    run.save_samples(grid(list(images[:SHOWN]), prompts[:SHOWN], columns=6))
    repeated = TextFeatures(*(x[:SHOWN].repeat_interleave(DIVERSE, dim=0) for x in text))
    several = sample_uint8(model, noise(range(len(repeated.pooled_BP)), model.config.z_dim), repeated)  # type: ignore
    owner = np.arange(min(SHOWN, len(prompts))).repeat(DIVERSE)
    diversity = within_prompt_diversity(several.reshape(len(several), -1) / 127.5, owner).value
    return validation.held_out.scores(images), diversity


def prepare_micro(
    config: Config, train: Dataset, captions: Captions, guiding: Tensor | None, batch: Batch, run: Run
) -> GanMicro:
    """Moves images, captions and the step's mismatched captions of one micro-batch to the device.

    Args:
        guiding: the guide's embeddings of all captions; None without a guide.
    """
    index = captions.chosen(train, batch.rows, batch.sample_ids, config.seed)
    labelled = captions.have_text(index)
    # an image without a caption borrows one for the generator; the discriminator judges that image unconditionally
    borrowed = seeding.uniform(config.seed, "borrowed", batch.sample_ids, 1)[:, 0]
    index = np.where(labelled, index, captions.with_text[(borrowed * len(captions.with_text)).astype(np.int64)])
    text = TextFeatures(*(x.to(run.device) for x in captions.text.rows(index, tokens=config.generator.cross_attention)))

    # The pool of the step: captions used as mismatches for every image, except its own captions and identical ones
    uniforms = seeding.uniform(config.seed, f"pool/{run.step}", np.arange(config.loss.negatives), 1)[:, 0]
    pool = captions.with_text[(uniforms * len(captions.with_text)).astype(np.int64)]
    pool_rows = np.searchsorted(captions.first, pool, side="right") - 1
    same = captions.same[index][:, None] == captions.same[pool]
    same |= torch.from_numpy(batch.rows[:, None] == pool_rows)
    pool_BP = captions.text.rows(pool, tokens=False).pooled_BP.to(run.device)

    labelled_B = None if config.data.unlabelled is None else torch.from_numpy(labelled).to(run.device)
    pairs = rules.CaptionPool(text.pooled_BP, pool_BP, same.to(run.device), labelled_B)
    guide = None if guiding is None else (guiding[index].to(run.device), guiding[pool].to(run.device))
    real = to_model(batch.images_BHWC.numpy()).to(run.device)
    return draw_micro(config, real, text, pairs, guide, batch.sample_ids)


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train = open_training(config.data, replay=config.replayed)

    with Run(run_dir, config, "cgan") as run:
        # Starting weights, data, and a record of both for later scores
        source = open_start(run, config)
        warn_of_contradictions(config.data, train)
        config = config.model_copy(update={"flip": may_flip(config.flip, train)})
        remember(run, train, config.data, [config.text.path, config.guidance.path], source)

        # Text: the frozen encoder, the features of all captions, and the frozen guide if the config has one
        encoder = prepare_text(config.text, train, run)
        guide = make_guide(config.guidance, encoder)
        run.identity.keep("guide_digest", guide.digest() if guide else None, "guide")
        if isinstance(guide, AlignedExtractor) and (others := guide.built_on()):
            run.extra["guide_built_on"] = others
        captions = prepare_captions(encoder, train, run, tokens=config.generator.cross_attention)
        guiding = guide.embed_text(captions.flat) if guide else None
        validation = prepare_validation(config.data, config.validation_n, config.validation_extractor, encoder, run)
        if guide:
            guide.to(run.device)

        # Networks, the averaged generator, and one Adam for each network
        models = build(config, encoder.pooled_dim, encoder.token_dim)
        plain_generator, plain_discriminator = (model.to(run.device) for model in models)
        players = {"generator": plain_generator, "discriminator": plain_discriminator}
        initialise(run, config, source, players, Reads(encoder))
        judging = trained(plain_discriminator)
        ema = EMA(plain_generator, config.ema_halflife_images)
        rate, betas = config.learning_rate, (0.0, config.adam_beta2)
        generator_optimizer = torch.optim.Adam(plain_generator.parameters(), rate, betas)
        discriminator_optimizer = torch.optim.Adam(plain_discriminator.parameters(), rate, betas)

        # Parts of a checkpoint; the newest checkpoint is resumed
        run.register("generator", plain_generator)
        run.register("discriminator", plain_discriminator)
        run.register("ema", ema)
        run.register("generator_optimizer", generator_optimizer)
        run.register("discriminator_optimizer", discriminator_optimizer)
        names = validation.held_out.names if validation else None
        best = keep_best(run, ema.state_tensors, config.best_metric, names)
        run.resume()

        # Both networks wrapped for the run's processes, and a loader that starts at the run's position
        generator, discriminator = (run.prepare(model, config.compile) for model in models)
        reading = config.dataloader_num_workers, run.quarantine, config.data.augment
        loader = Loader(train, config.train_batch_size, config.seed, run.position, *reading)

        for batches in run.steps(loader, generator_optimizer, discriminator_optimizer):
            # Validation of the averaged generator, and a checkpoint
            if validation and run.due(config.validation_steps):
                scores, diversity = run.on_main(lambda: validate(ema.module, validation, run))  # type: ignore[arg-type]
                note_validation(run, scores, best, len(validation.held_out.captions), diversity=diversity)
            if run.due(config.checkpointing_steps):
                run.save()

            # Micro-batches of this step; there are none at the end of the run
            micros = [prepare_micro(config, train, captions, guiding, batch, run) for batch in batches]
            if not micros:
                break

            # Schedules: the penalty falls to a tenth, the caption fades in
            peak = config.loss.gamma if isinstance(config.loss, RelativisticLoss) else 0.0
            gamma = learning_rate(run.step, run.total_steps, peak, 0, 0.1)
            condition = min(1.0, run.step / (config.condition_ramp * run.total_steps)) if config.condition_ramp else 1.0
            run.note({"gamma": gamma})

            # For the reconstruction loss: the noise whose image is nearest to the real one
            if config.loss.reconstruction:
                with run.autocast():
                    micros = [micro._replace(z=nearest_noise(plain_generator, config, micro)) for micro in micros]

            # Discriminator step; if the step has one micro-batch, its generated images are reused for the generator
            shared = len(micros) == 1
            fakes: list[Tensor] = []
            losses: list[Tensor] = []
            for micro in run.accumulate(discriminator, micros):
                with torch.set_grad_enabled(shared):
                    fakes = [generator(micro.z, micro.text)]
                loss, watch = discriminate(discriminator, micro, fakes[0], config, gamma, condition)
                run.accelerator.backward(loss)
                losses.append(watch["d_loss"])
                run.note(watch)
            norm = gradient_norm(plain_discriminator)
            sound = run.judge(*losses, norm)
            if sound:
                discriminator_optimizer.step()
            discriminator_optimizer.zero_grad()
            run.note({"d_gradient": norm})

            # Generator step, against the updated discriminator
            require_gradients(judging, False)
            losses = []
            for micro in run.accumulate(generator, micros):
                fake = fakes[0] if shared else generator(micro.z, micro.text)
                loss, watch = generate(plain_discriminator, micro, fake, config, condition, guide, run.autocast)
                run.accelerator.backward(loss)
                losses.append(loss)
                run.note(watch)
            require_gradients(judging, True)
            norm = gradient_norm(plain_generator)
            sound = sound and run.judge(*losses, norm)
            if sound:
                generator_optimizer.step()
            generator_optimizer.zero_grad()
            run.note({"g_gradient": norm})

            # Averages over steps: the mean latent, and the weights used for sampling
            if sound:
                track_mean_latent(plain_generator, micros[0], run.step + 1)
                ema.update(plain_generator, run.images_per_step, run.images_seen + run.images_per_step)


if __name__ == "__main__":  # python -m t2i.train.cgan
    run_program("train", "cgan")
