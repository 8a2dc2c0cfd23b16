"""Measures the speed of the prior beside x-transformers and dalle-pytorch at equal size, as a markdown table.

    pip install t2i[bench] && pip install --no-deps dalle-pytorch
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/prior_speed.py

Width 256, 6 blocks, 8 heads of 32, 1,024 codes, 32 text tokens, float32 unless stated otherwise. Each round runs all cases in
one process, so that slow minutes of the machine affect every side; a cell is the median of the rounds. CPU seconds, over all
threads, depend less on other load than wall seconds. Both other packages sample with top-k 100. `generate_images` of
dalle-pytorch ignores its cache without guidance, so its forward is called with one. x-transformers has no guidance: its
guided rows are twice the batch, the least cost of two branches.
"""

import argparse
import sys
import types
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import Taken, median, timed

from t2i.prior.config import Config, SamplingConfig
from t2i.prior.decoding import decode
from t2i.prior.orders import training_order
from t2i.prior.transformer import Grid, Prior, PriorDraws
from t2i.text import TextFeatures

WIDTH, DEPTH, HEADS, CODES, TEXT = 256, 6, 8, 1024, 32
TRAIN_BATCH = 32
PEERS = ("x-transformers", "dalle-pytorch")
Case = tuple[str, str, int, Callable[[], object]]  # task, who, image tokens, what to time


def stub_dalle() -> None:
    """Stubs the downloaders and tokenizers that dalle-pytorch imports and that are not called here."""
    for name in ("requests", "omegaconf", "taming", "taming.models", "taming.models.vqgan", "youtokentome", "ftfy",
                 "pkg_resources", "dalle_pytorch.tokenizer"):  # fmt: skip
        module = types.ModuleType(name)
        for attribute in ("OmegaConf", "VQModel", "GumbelVQ", "get_distribution", "tokenizer"):
            setattr(module, attribute, None)
        sys.modules[name] = module


def ours(order: str, side: int) -> Prior:
    config = Config.model_validate({
        "order": order,
        "model": {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "mlp_width": 688, "dropout": 0.0},
        "loss": {"label_smoothing": 0.0, "token_dropout": 0.1, "caption_dropout": 0.1},
    })  # fmt: skip
    prior = Prior(config, Grid(side, side, 1, CODES), WIDTH, WIDTH, TEXT)
    torch.nn.init.normal_(prior.head.weight, std=0.05)
    return prior


def x_transformer(tokens: int) -> torch.nn.Module:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(dim=WIDTH, depth=DEPTH, heads=HEADS, attn_dim_head=32, attn_flash=True, rotary_pos_emb=True)
    return AutoregressiveWrapper(
        TransformerWrapper(num_tokens=CODES, max_seq_len=TEXT + tokens + 1, attn_layers=layers, use_abs_pos_emb=False)
    )


def dalle(side: int) -> torch.nn.Module:
    from dalle_pytorch.dalle_pytorch import DALLE, DiscreteVAE

    vae = DiscreteVAE(image_size=4 * side, num_layers=2, num_tokens=CODES, codebook_dim=8, hidden_dim=8)
    return DALLE(dim=WIDTH, vae=vae, num_text_tokens=CODES, text_seq_len=TEXT, depth=DEPTH, heads=HEADS, dim_head=32)


def dalle_sample(model: torch.nn.Module, batch: int, tokens: int, guidance: float) -> torch.Tensor:
    from dalle_pytorch.dalle_pytorch import gumbel_sample, top_k

    text, cache = torch.randint(1, CODES, (batch, TEXT)), {}
    image = torch.zeros(batch, 0, dtype=torch.long)
    with torch.no_grad():
        for _ in range(tokens):
            if guidance == 1:
                logits = model(text, image, cache=cache)[:, -1]
            else:
                logits = model.forward_with_cond_scale(text.clone(), image, cond_scale=guidance, cache=cache)[:, -1]
            filtered = top_k(logits, thres=1 - 100 / logits.shape[-1])
            image = torch.cat([image, (gumbel_sample(filtered, dim=-1) - model.num_text_tokens)[:, None]], dim=1)
    return image


def features(batch: int) -> TextFeatures:
    mask = torch.ones(batch, TEXT, dtype=torch.bool)
    return TextFeatures(torch.randn(batch, TEXT, WIDTH), mask, torch.randn(batch, WIDTH))


def training_cases(side: int, batch: int) -> list[Case]:
    tokens = side * side
    codes, text = torch.randint(0, CODES, (batch, tokens)), features(batch)
    words = torch.randint(1, CODES, (batch, TEXT))
    whole = torch.cat([words, codes], dim=1)
    peers = {"x-transformers": x_transformer(tokens), "dalle-pytorch": dalle(side)}
    raster, any_order = ours("raster", side), ours("random", side)

    def losses() -> dict[str, tuple[torch.nn.Module, Callable[[], torch.Tensor]]]:
        draws = PriorDraws(torch.rand(batch), torch.rand(batch, tokens))
        order = training_order(torch.rand(batch, tokens), (0.6, 0.3))
        return {
            "raster": (raster, lambda: raster(codes, text, None, draws).loss),
            "random": (any_order, lambda: any_order(codes, text, order, draws).loss),
            "x-transformers": (peers["x-transformers"], lambda: peers["x-transformers"](whole)),
            "dalle-pytorch": (peers["dalle-pytorch"], lambda: peers["dalle-pytorch"](words, codes, return_loss=True)),
        }

    def case(who: str, bf16: bool) -> Case:
        model = losses()[who][0].train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

        def run() -> None:
            loss = losses()[who][1]
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad()

        return f"train {tokens}{' bf16' if bf16 else ''}", who, batch * tokens, run

    return [case(who, bf16) for bf16 in (False, True) for who in losses()]


def sampling_cases(side: int, batch: int) -> list[Case]:
    tokens = side * side
    text, seeds = features(batch), list(range(batch))
    raster, any_order = ours("raster", side).eval(), ours("random", side).eval()
    x, d = x_transformer(tokens).eval(), dalle(side).eval()
    cases: list[Case] = []
    for guidance in (1.0, 3.0):
        task = f"sample {tokens}, batch {batch}{', guidance' if guidance != 1 else ''}"
        knobs = SamplingConfig(guidance=guidance, top_k=100)
        parallel = [knobs.model_copy(update={"steps": steps}) for steps in ((4, 10) if tokens == 64 else (8, 20))]
        rows = batch * (1 if guidance == 1 else 2)
        prompt = torch.randint(0, CODES, (rows, TEXT))
        cases += [
            (task, "raster", batch * tokens, lambda k=knobs: decode(raster, text, seeds, k)),
            (task, "random", batch * tokens, lambda k=knobs: decode(any_order, text, seeds, k)),
            *(
                (task, f"random, {k.steps} steps", batch * tokens, lambda k=k: decode(any_order, text, seeds, k))
                for k in parallel
            ),
            (task, "x-transformers", batch * tokens,
             lambda p=prompt: x.generate(p, tokens, cache_kv=True, filter_kwargs={"k": 100})),
            (task, "dalle-pytorch", batch * tokens, lambda g=guidance: dalle_sample(d, batch, tokens, g)),
        ]  # fmt: skip
    return cases


def measure(cases: list[Case], rounds: int) -> list[Taken]:
    """Returns the medians of each case, after one warm-up."""
    taken: list[list[Taken]] = [[] for _ in cases]
    for turn in range(rounds + 1):
        for i, (_, _, _, run) in enumerate(cases):
            _, seconds_of_run = timed(run)
            if turn:
                taken[i].append(seconds_of_run)
    return [median(times) for times in taken]


def seconds(run: Callable[[], object], rounds: int = 30) -> float:
    run()
    return measure([("", "", 0, run)], rounds)[0].wall


def limits(batches: tuple[int, ...]) -> None:
    """Returns the time of one pass over the weights, by bandwidth and by matrix products alone."""
    model = ours("raster", 8)
    weights = [m.weight.detach() for block in model.blocks for m in (block.qkv, block.out, block.gate_up, block.down)]  # type: ignore
    weights.append(model.head.weight.detach())
    size = sum(w.numel() * 4 for w in weights)
    flat = torch.randn(size // 4)
    read = seconds(lambda: flat.sum())
    print(
        f"\nWeights of a step: {size / 2**20:.1f} MiB; read at {size / read / 1e9:.1f} GB/s (a sum over as many bytes): "
    )
    print(f"limit {1 / read:.0f} steps/s.")
    for rows in batches:
        inputs = [torch.randn(rows, w.shape[1]) for w in weights]

        def products(inputs: list[torch.Tensor] = inputs) -> None:
            for x, w in zip(inputs, weights, strict=True):
                F.linear(x, w)

        with torch.inference_mode():
            print(f"- matrix products alone, {rows} rows: {rows / seconds(products):.0f} tokens/s")
    a = torch.randn(1024, 1024)
    for name, b in (("float32", a), ("bfloat16", a.bfloat16())):
        print(f"- {name} matrix product of 1,024: {2 * 1024**3 / seconds(lambda b=b: b @ b) / 1e9:.0f} GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16], help="sides of the square of codes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--train-batch", type=int, default=TRAIN_BATCH, help="0: no training")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    stub_dalle()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    limits((1, 2, 16, 32))
    print("\n| task | who | image tokens/s | of the faster peer | a CPU second | of the faster peer |")
    print("|---" * 6 + "|")
    groups = [sampling_cases(side, batch) for side in options.sides for batch in options.batches]
    if options.train_batch:
        groups.append(training_cases(max(options.sides), options.train_batch))
    for cases in groups:
        medians = measure(cases, options.rounds)
        rates = {case[:2]: Taken(case[2] / t.wall, case[2] / t.cpu) for case, t in zip(cases, medians, strict=True)}
        for (task, who), rate in rates.items():
            peers = [r for (other, name), r in rates.items() if other == task and name in PEERS]
            wall, cpu = (own / max(theirs) for own, theirs in zip(rate, zip(*peers, strict=True), strict=True))
            print(f"| {task} | {who} | {rate.wall:,.0f} | {wall:.2f} x | {rate.cpu:,.0f} | {cpu:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
