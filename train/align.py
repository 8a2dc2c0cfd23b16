"""Trains a small dual encoder on captioned pictures: a frozen text encoder and a CLIP-style scorer (Radford et al., 2021).

    t2i train align --data shapes-2 --run-dir runs/align

The run's directory is what `text.path` and `guidance.path` of other programs name. To resume, run the same command again.
"""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from t2i import seeding
from t2i.align.config import Config
from t2i.align.dual_encoder import Captioner, DualEncoder, contrastive_loss
from t2i.align.frozen import TOKENIZER
from t2i.align.tokenizer import CaptionTokenizer
from t2i.cli import run_program
from t2i.data import Dataset, open_dataset
from t2i.data.caption_checks import warn_of_colors
from t2i.data.loader import Batch, Loader, choose_captions
from t2i.data.shapes.captions import meaning
from t2i.files import write_text
from t2i.hardware import prepare_cpu
from t2i.images import to_model
from t2i.metrics.retrieval import retrieval
from t2i.training.optimization import NonFiniteGuard, learning_rate, set_learning_rate
from t2i.training.run import Run
from t2i.training.trained_on import remember
from t2i.training.validation import keep_best, note_validation, open_held_out_splits

WAYS, RECALLS = ("text_to_image", "image_to_text"), (1, 5, 10)
NOISE = 0.05  # standard deviation of the noise on training pictures, in units of [-1, 1]


class Paired(nn.Module):
    """Both embeddings and the caption's likelihood in one call, as DistributedDataParallel wants it."""

    def __init__(self, model: DualEncoder, captioner: Captioner | None) -> None:
        super().__init__()
        self.model, self.captioner = model, captioner

    def forward(self, images_BCHW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        map_BCHW = self.model.image.map(images_BCHW)
        image_BE = F.normalize(self.model.image.embed(map_BCHW).float(), dim=-1)
        said = self.captioner(map_BCHW, ids_BT, mask_BT) if self.captioner else image_BE.new_zeros(())
        return image_BE, self.model.embed_text(ids_BT, mask_BT), self.model.scale(), said


def parameter_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels; none for gains, biases and embeddings."""
    decayed = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and "tokens" not in n and "positions" not in n}
    rest = [p for name, p in model.named_parameters() if name not in decayed]
    return [{"params": list(decayed.values()), "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]


def open_splits(config: Config) -> tuple[Dataset, dict[str, Dataset]]:
    """The training split, and whatever held-out splits the data has."""
    train = open_dataset(config.data.address, config.split, config.data.view(config.data.limit))
    return train, open_held_out_splits(config.data, config.validation_n)


def own_tokenizer(config: Config, run: Run, train: Dataset) -> CaptionTokenizer:
    """The run's tokenizer: fitted on the captions at its start, and the same file ever after."""
    path, most, key = run.directory / TOKENIZER, config.text_tower.max_tokens, "vocabulary_digest"

    def digest_of(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    def prepare() -> str:
        if not run.is_new and path.exists():
            return path.read_bytes().decode(errors="replace")
        captions = [caption for options in train.captions for caption in options]
        fitted = CaptionTokenizer.fit(captions, config.text_tower.vocabulary, most).json_text
        run.refuse_changed(key, digest_of(fitted), "vocabulary")
        write_text(path, fitted)
        return fitted

    text = run.on_main(prepare)
    run.identify(key, digest_of(text), f"vocabulary in {path}")
    return CaptionTokenizer(text, most)


@torch.no_grad()
def recalls(
    model: DualEncoder, tokenizer: CaptionTokenizer, dataset: Dataset, device: torch.device
) -> dict[str, float]:
    """Recall@1/5/10 both ways among the rows of `dataset`; captions that ask for the same count as hits."""
    model.eval()
    captions = [options[0] for options in dataset.captions]
    images, texts = [], []
    for start in range(0, len(dataset), 250):
        rows = range(start, min(start + 250, len(dataset)))
        images.append(model.embed_images(to_model(dataset.images(rows)).to(device)).cpu().numpy())
        ids, mask, _ = tokenizer(captions[start : start + 250])
        texts.append(model.embed_text(ids.to(device), mask.to(device)).cpu().numpy())
    model.train()
    groups = [meaning(caption) for caption in captions]
    found = retrieval(np.concatenate(images), np.concatenate(texts), groups, groups, ks=RECALLS)
    return {f"{way}_recall@{k}": getattr(found, way).recall[k] for way in WAYS for k in RECALLS}


def everywhere(tensor: Tensor, num_processes: int) -> Tensor:
    """Rows of all processes, with gradients: every process's captions are negatives of every other's pictures."""
    return torch.cat(all_gather(tensor)) if num_processes > 1 else tensor  # type: ignore[arg-type]


def main(config: Config, run_dir: Path) -> None:
    prepare_cpu()
    train, held_out = open_splits(config)

    with Run(run_dir, config, "align") as run:
        warn_of_colors(config.data.augment, train)
        remember(run, train, config.data)
        tokenizer = own_tokenizer(config, run, train)
        model = DualEncoder(config, len(tokenizer)).to(run.device)
        captioner = Captioner(config, len(tokenizer)).to(run.device) if config.captioning_weight else None
        both = Paired(model, captioner)
        optimizer = torch.optim.AdamW(
            parameter_groups(both, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
        )
        run.register("model", model)
        if captioner:
            run.register("captioner", captioner)
        run.register("optimizer", optimizer)
        names = [f"{way}_recall@{k}" for way in WAYS for k in RECALLS] if "val" in held_out else ()
        best = keep_best(run, model.state_dict, config.best_metric, names)
        run.resume()
        paired = run.prepare(both, config.compile)
        place = (run.images_seen, run.process_index, run.num_processes, config.dataloader_num_workers, run.quarantine)
        run.loader = loader = Loader(train, config.train_batch_size, config.seed, *place, config.data.augment)
        guard = NonFiniteGuard(run.rollback)

        def losses_of(batch: Batch) -> tuple[Tensor, Tensor]:
            chosen = choose_captions(train, batch.rows, batch.sample_ids, config.seed)
            said = [train.captions[row][k] for row, k in chosen]
            ids, mask, _ = tokenizer(said)
            images = to_model(batch.images_BHWC.numpy()).to(run.device)
            if config.augment:
                images = images + NOISE * torch.randn_like(images)
            image_BE, text_BE, scale, said_nll = paired(images, ids.to(run.device), mask.to(run.device))
            keys = torch.from_numpy(seeding.ids_of(said)).to(run.device)
            pictures = torch.from_numpy(batch.rows).to(run.device)
            image_BE, text_BE, keys, pictures = (
                everywhere(x, run.num_processes) for x in (image_BE, text_BE, keys, pictures)
            )
            same = (keys[:, None] == keys) | (pictures[:, None] == pictures)
            return contrastive_loss(image_BE, text_BE, scale, same), said_nll

        while run.step < run.total_steps and not run.stopping():
            lr = learning_rate(run.step, run.total_steps, config.learning_rate, config.lr_warmup_steps, 0.02)
            set_learning_rate(optimizer, lr)
            batches = [next(loader) for _ in range(config.gradient_accumulation_steps)]
            total = torch.zeros(2, device=run.device)
            for i, batch in enumerate(batches):
                with nullcontext() if i == len(batches) - 1 else run.accelerator.no_sync(paired):
                    losses = torch.stack(losses_of(batch))
                    run.accelerator.backward((losses * losses.new_tensor([1.0, config.captioning_weight])).sum())
                total += losses.detach() / len(batches)
            norm = nn.utils.clip_grad_norm_(both.parameters(), 1.0)
            if guard.check(run.all_finite(total, norm), run.step, batches[0].sample_ids.tolist()):
                optimizer.step()
            optimizer.zero_grad()
            run.advance(config.train_batch_size * len(batches) * run.num_processes)
            seen = {"loss": total[0]} | ({"caption_nll": total[1]} if captioner else {})
            run.note(seen | {"temperature": 1 / model.scale(), "gradient_norm": norm, "learning_rate": lr})

            if run.due(config.validation_steps):
                for split, dataset in held_out.items():
                    found = run.on_main(lambda: recalls(model, tokenizer, dataset, run.device))  # noqa: B023
                    note_validation(run, found, best if split == "val" else None, split)
            if run.due(config.checkpointing_steps):
                run.save()


if __name__ == "__main__":  # python -m t2i.train.align
    run_program("train", "align")
