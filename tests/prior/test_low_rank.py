"""Low-rank fine-tuning: it starts from the loaded model, trains few parameters, and gives a plain model."""

import pytest
import torch
from torch.nn.utils import parametrize

from t2i.cli import app
from t2i.config.training import LowRankConfig
from t2i.errors import InputError
from t2i.prior.config import Config
from t2i.prior.low_rank import Merged, add_low_rank
from t2i.prior.transformer import Grid, Prior
from t2i.text import TextFeatures

MODEL = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "dropout": 0.0}
LORA = LowRankConfig(rank=3, alpha=6.0)


def prior() -> Prior:
    torch.manual_seed(0)
    model = Prior(Config.model_validate({"model": MODEL}), Grid(4, 4, 1, 32), 8, 8, 5)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.modulation.weight, std=0.1)
    return model


def batch() -> tuple[torch.Tensor, TextFeatures]:
    text = TextFeatures(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 8))
    return torch.randint(32, (2, 16)), text


def test_the_first_step_sees_the_loaded_model_and_only_what_is_low_rank_or_fresh_is_trained() -> None:
    model, given = prior(), batch()
    before, names = model(*given).loss, {name for name, _ in model.named_parameters()}
    add_low_rank(model, LORA, ["text.0.weight", "text_position"])
    loss = model(*given).loss
    torch.testing.assert_close(loss, before)
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name in trained if name in names} == {"text.0.weight", "text_position"}
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    adapted = [m for m in layers if parametrize.is_parametrized(m)]
    assert len(adapted) == len(layers) - 1 and len(trained) == 2 + 2 * len(adapted)


def test_a_merged_copy_is_a_plain_model_with_the_same_outputs() -> None:
    model, given = prior(), batch()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = Merged(model, True)
    add_low_rank(model, LORA, [])
    for layer in model.modules():
        if parametrize.is_parametrized(layer):
            torch.nn.init.normal_(layer.parametrizations.weight[0].up, std=0.1)  # type: ignore
    copy = merged.update()
    assert copy.state_dict().keys() == plain.keys()
    torch.testing.assert_close(copy(*given).loss, model(*given).loss)
    change = copy.state_dict()["blocks.1.qkv.weight"] - plain["blocks.1.qkv.weight"]
    low = model.blocks[1].qkv.parametrizations.weight[0]  # type: ignore
    torch.testing.assert_close(change, 6.0 / 3 * low.up @ low.down)
    assert torch.linalg.matrix_rank(change, atol=1e-5) == 3
    assert Merged(model, False).update() is model


def test_a_model_without_loaded_linear_layers_is_refused() -> None:
    model = prior()
    with pytest.raises(InputError, match="lora: no linear layer was loaded from init_from"):
        add_low_rank(model, LORA, [name for name, _ in model.named_parameters()])


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["lora.rank=2"], "lora (rank 2) adapts loaded weights, and init_from is null"),
        (["lora.rank=2", "init_from=prior", "freeze=[model.head]"], "freeze model.head has no effect"),
        (["lora.rank=0", "init_from=prior"], "lora.rank"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    sets: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["train", "prior", *(word for value in sets for word in ("--set", value))]) == 2
    assert words in " ".join(capfd.readouterr().err.split())
