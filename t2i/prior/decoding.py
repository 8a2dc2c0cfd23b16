"""Decodes codes from captions: one pass over the caption, then one step per group of slots, with cached keys and values.

Guidance runs both branches as one batch: logits = null + g (caption - null) (Ho & Salimans, 2021). Codes are sampled as the
argmax of logits plus Gumbel noise, and the noise is a function of an image's seed and the slot alone.

An image's codes do not depend on the other images. Batches of different sizes round logits differently: by up to 1.6e-5 measured,
for logits with a standard deviation of 5, times 2 g - 1 with guidance g. On a CPU, a batch therefore checks for each code if a
difference of SLACK, in the same units, could have changed it; if so (one code in 10,000), the image is decoded again alone. A
batch thus gives the same codes as single images, and 16 images take a fourth to a fifth of the time of decoding them one by one.
On other devices all images are one batch, whose size may affect rounding.

On a CPU each thread decodes its own batch: the operators of a step take tens of microseconds, as long as synchronising two
threads. Only a single image of a model with more than LARGE bytes of weights uses all threads.

Axes: B images, S slots, n tokens of a step, K codes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i import seeding
from t2i.errors import InputError
from t2i.hardware import one_thread_each
from t2i.prior.config import SamplingConfig
from t2i.prior.kv_cache import CachedDecoder, Weights, weights_of
from t2i.prior.orders import group_sizes
from t2i.prior.transformer import Grid, Prior
from t2i.seeding import gumbel
from t2i.text import TextFeatures

CHUNK = 16  # images of one batch on a CPU
SLACK = 1e-4  # six times the difference that the size of a batch makes in a logit
NOISE_VALUES = 2**21  # Gumbel noise values computed at a time
LARGE = 2**25  # size of a model's weights, in bytes, above which one image uses all threads

Report = Callable[[float], None]  # receives the share of the work that is done


class Known(NamedTuple):
    """Given codes, which decoding does not change."""

    mask_BS: Tensor  # True if the code is given
    codes_BS: Tensor


def guidance_at(done: float, sampling: SamplingConfig) -> float:
    """Returns the guidance scale after a share `done` of the tokens; 1 is no guidance."""
    if done >= sampling.guidance_until:
        return 1.0
    if sampling.guidance_schedule == "constant":
        return sampling.guidance
    return 1 + (sampling.guidance - 1) * (1 - math.cos(math.pi * done**sampling.guidance_power)) / 2


def bounds_of(logits: Tensor, sampling: SamplingConfig, slack: float = 0.0) -> tuple[Tensor, Tensor, Tensor] | None:
    """Returns bounds on the logits [..., 1] for top-k, then top-p of the rest; None if every code is kept.

    Returns:
        (floor, lowest, certain): codes with logits of at least `floor` are kept. If every logit may be off by `slack`, codes
        below `lowest` are certainly excluded, and codes above `certain` are certainly kept.
    """
    nucleus = sampling.top_p < 1 and sampling.temperature > 0
    every = logits.shape[-1]
    k = min(sampling.top_k or every, every)
    if k == every and not nucleus:
        return None
    sorted_ = F.pad(logits.topk(min(k + 1, every)).values, (0, 1), value=-math.inf)
    counts = [k, k, k]
    if nucleus:
        p = (sorted_[..., :k].double() / sampling.temperature).softmax(dim=-1)
        before = p.cumsum(dim=-1) - p
        bounds = (sampling.top_p, sampling.top_p + slack, max(sampling.top_p - slack, 1e-9))
        counts = [(before < bound).sum(dim=-1, keepdim=True) for bound in bounds]
    else:
        counts = [torch.full_like(logits[..., :1], k, dtype=torch.long)] * 3
    floor, lowest = sorted_.gather(-1, counts[0] - 1), sorted_.gather(-1, counts[1] - 1) - slack
    return floor, lowest, sorted_.gather(-1, counts[2]) + slack


def choose(
    logits: Tensor, noise: Tensor | None, sampling: SamplingConfig, slack: float
) -> tuple[Tensor, Tensor | None]:
    """Returns (codes [...], unsure [...]) chosen by guided logits [..., K]; `unsure` is None if `slack` is 0.

    Args:
        slack: `unsure` is True if changing each logit by half of this could give another code.
    """
    scores = logits if noise is None else torch.add(logits, noise, alpha=sampling.temperature)
    bounds = bounds_of(logits, sampling, slack)
    allowed = scores if bounds is None else scores.masked_fill(logits < bounds[0], -math.inf)
    codes = allowed.argmax(dim=-1)
    if not slack:
        return codes, None
    possible = scores if bounds is None else scores.masked_fill(logits < bounds[1], -math.inf)
    best = possible.topk(min(2, possible.shape[-1]))
    unsure = (best.values[..., 0] - best.values[..., -1] < slack) | (best.indices[..., 0] != codes)
    if bounds is not None:
        unsure |= (logits.gather(-1, codes[..., None]) <= bounds[2])[..., 0]
    return codes, unsure


class _Job(NamedTuple):
    """Images that are decoded together and have the same slots given."""

    text: TextFeatures
    seeds: Sequence[int]
    codes_BS: Tensor  # given codes, 0 elsewhere
    given_S: Tensor
    ranked_BS: Tensor  # slots in decoding order, given ones first (raster: in place)


def _noise(job: _Job, start: int, grid: Grid, codes: int) -> Iterator[Tensor]:
    """Yields Gumbel noise [B, K] for ranks start, start + 1, ..., computed for many ranks at a time."""
    block = max(1, NOISE_VALUES // (len(job.seeds) * codes))
    ranked = job.ranked_BS.cpu().numpy()
    for first in range(start, grid.slots, block):
        rows = [gumbel(seed, ranked[i, first : first + block], codes) for i, seed in enumerate(job.seeds)]
        yield from torch.from_numpy(np.stack(rows)).float().to(job.ranked_BS.device).unbind(1)


def _decode_job(
    model: Prior, job: _Job, sampling: SamplingConfig, slack: float, static: bool, on_step: Report, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Decodes one job; returns (codes_BS, unsure_B)."""
    slots, raster = model.grid.slots, model.query is None
    given = int(job.given_S.sum())
    start = 0 if raster else given
    sizes = (1,) * slots if raster else group_sizes(sampling.steps or slots, slots - given, sampling.group_schedule)
    ends = np.cumsum((start, *sizes)).tolist()
    guidance = [guidance_at(end / slots, sampling) for end in ends[:-1]]
    last_guided = max((i for i, g in enumerate(guidance) if g != 1), default=-1)
    noise = _noise(job, start, model.grid, model.grid.codes) if sampling.temperature else None
    is_given = job.given_S.tolist()
    codes_BS, unsure_B = job.codes_BS.clone(), torch.zeros(len(job.seeds), dtype=torch.bool, device=job.codes_BS.device)
    decoder = CachedDecoder(model, job.text, last_guided >= 0, weights, static)
    x, before = decoder.first_RD[:, None], job.ranked_BS[:, :start]
    for i, (begin, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        if decoder.guided and i > last_guided:
            decoder.drop_null()
            x = x[: decoder.images]
        now = job.ranked_BS[:, begin:end]
        if model.query is not None:
            tokens = torch.cat(
                [decoder.embed(codes_BS.gather(1, before), before), model.query + decoder.positions[now]], dim=1
            )
            x = decoder.run(tokens, torch.cat([before, now], dim=1), before.shape[1])
        values = None if noise is None else torch.stack([next(noise) for _ in range(end - begin)], dim=1)
        if not (raster and is_given[begin]):
            allowed = slack * max(1.0, 2 * guidance[i] - 1)
            chosen, unsure = choose(decoder.guide(x, guidance[i]), values, sampling, allowed)
            codes_BS.scatter_(1, now, chosen)
            if unsure is not None:
                unsure_B |= unsure.any(dim=1)
        if raster and end < slots:
            x = decoder.run(decoder.embed(codes_BS.gather(1, now), now), now, 1)
        before = now
        on_step((i + 1) / len(sizes))
    return codes_BS, unsure_B


def _check(model: Prior, sampling: SamplingConfig, known: Known | None) -> None:
    codes, slots = model.grid.codes, model.grid.slots
    if sampling.top_k is not None and sampling.top_k > codes:
        raise InputError(
            f"top_k {sampling.top_k:,} is more than the {codes:,} codes of the tokenizer; use {codes} or less"
        )
    if model.query is None and sampling.steps not in (None, slots):
        raise InputError(
            f"steps {sampling.steps}: this prior was trained with order=raster and samples one token per step; leave steps "
            "out, or train one with order=random"
        )
    if known is not None:
        inside = known.codes_BS[known.mask_BS]
        if len(inside) and not 0 <= int(inside.min()) <= int(inside.max()) < codes:
            raise InputError(f"given codes reach {int(inside.max())}; the tokenizer has codes 0 to {codes - 1}")


class _Request(NamedTuple):
    """All images of one call of `decode`; the given codes are on the CPU."""

    model: Prior
    sampling: SamplingConfig
    text: TextFeatures
    seeds: Sequence[int]
    known: Known

    def chunks(self, most: int) -> list[list[int]]:
        """Returns the rows in lists of at most `most`, each of which has the same slots given."""
        groups: dict[bytes, list[int]] = {}
        for row in range(len(self.seeds)):
            groups.setdefault(self.known.mask_BS[row].numpy().tobytes(), []).append(row)
        return [rows[i : i + most] for rows in groups.values() for i in range(0, len(rows), most)]

    def job(self, rows: list[int]) -> _Job:
        device, seeds, given_S = self.model.code.device, [self.seeds[row] for row in rows], self.known.mask_BS[rows[0]]
        features = TextFeatures(*(x[rows] for x in self.text))
        ranked_BS = self._orders(seeds, given_S).to(device)
        return _Job(features, seeds, self.known.codes_BS[rows].to(device), given_S, ranked_BS)

    def decode_into(self, codes_BS: Tensor, on_step: Report | None, compile: bool) -> None:
        """Decodes all images, a chunk at a time, and writes their codes to `codes_BS`."""
        cpu, model, mask_BS = codes_BS.device.type == "cpu", self.model, self.known.mask_BS
        count = len(self.seeds)
        chunks = self.chunks(min(CHUNK, -(-count // torch.get_num_threads())) if cpu else count)
        progress = _Progress(on_step, [len(rows) for rows in chunks])
        weights = weights_of(model)  # packed once, before the threads need them

        @torch.inference_mode()  # applies to the present thread only
        def run(number: int) -> None:
            rows, report = chunks[number], progress.of(number)
            if mask_BS[rows[0]].all():
                report(1.0)
                return
            slack = SLACK if cpu and len(rows) > 1 else 0.0
            job, static = self.job(rows), compile and not cpu
            codes_BS[rows], unsure_B = _decode_job(model, job, self.sampling, slack, static, report, weights)
            for i in unsure_B.nonzero()[:, 0].tolist():
                alone = self.job([rows[i]])
                decoded = _decode_job(model, alone, self.sampling, 0.0, False, lambda share: None, weights)[0]
                codes_BS[rows[i]] = decoded[0]

        if not cpu or (len(chunks) == 1 and sum(p.nbytes for p in model.parameters()) > LARGE):
            for number in range(len(chunks)):
                run(number)
        else:
            with one_thread_each() as workers, ThreadPoolExecutor(workers) as pool:
                list(pool.map(run, range(len(chunks))))

    def _orders(self, seeds: Sequence[int], given_S: Tensor) -> Tensor:
        """Returns ranked_BS, the decoding order of images that have the same slots given."""
        slots = self.model.grid.slots
        raster = np.arange(slots)
        if self.model.query is None:
            return torch.from_numpy(np.tile(raster, (len(seeds), 1)))
        if self.sampling.decoding_order == "random":
            draws = np.concatenate([seeding.uniform(seed, "sample/order", [0], slots) for seed in seeds])
        else:
            draws = np.tile(raster / slots, (len(seeds), 1))
        return torch.from_numpy(np.argsort(draws - given_S.numpy(), axis=1, kind="stable"))


@torch.inference_mode()
def decode(
    model: Prior,
    text: TextFeatures,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    known: Known | None = None,
    on_step: Report | None = None,
    compile: bool = False,
) -> Tensor:
    """Returns indices_BS (int64, on the model's device) of one image per caption and seed; given codes are not changed.

    Args:
        text: features on any device.
        sampling: `steps` and `decoding_order` apply to models of order `random`.
        known: given codes, for inpainting or completion; a raster model reads them in place.
        on_step: called with the share of the work that is done, after each step (on a CPU from the thread that did it).
        compile: CUDA graphs of `static_step`; no effect on a CPU.

    Raises:
        InputError: `top_k` is above K, `steps` is set for a raster model, or a given code is out of range.
    """
    _check(model, sampling, known)
    model.eval()
    shape = len(seeds), model.grid.slots
    known = known or Known(torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long))
    known = Known(known.mask_BS.cpu(), known.codes_BS.cpu() * known.mask_BS.cpu())
    codes_BS = known.codes_BS.to(model.code.device, copy=True)
    if len(seeds):
        features = TextFeatures(*(x.to(codes_BS.device) for x in text))
        _Request(model, sampling, features, seeds, known).decode_into(codes_BS, on_step, compile)
    return codes_BS


class _Progress:
    """Sums up the shares of work that several threads have done."""

    def __init__(self, on_step: Report | None, sizes: Sequence[int]) -> None:
        self.on_step, self.sizes, self.shares, self.lock = on_step, sizes, [0.0] * len(sizes), Lock()

    def of(self, number: int) -> Report:
        def report(share: float) -> None:
            if self.on_step is not None:
                with self.lock:
                    self.shares[number] = share
                    done = sum(map(math.prod, zip(self.shares, self.sizes, strict=True)))
                    self.on_step(done / sum(self.sizes))

        return report
