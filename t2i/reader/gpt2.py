"""Initialises a caption decoder with tokenizer and weights of a GPT-2, from a folder of transformers."""

from typing import Any, NamedTuple

from torch import Tensor

from t2i.errors import InputError
from t2i.pretrained import load_model, load_text_tokenizer, open_folder
from t2i.reader.decoder import CaptionDecoder

# tensors of a block: GPT-2's name -> the decoder's; GPT-2 stores matrices transposed
_OF_A_BLOCK = {
    "ln_1": "norm_attention", "attn.c_attn": "qkv", "attn.c_proj": "out",
    "ln_2": "norm_mlp", "mlp.c_fc": "up", "mlp.c_proj": "down",
}  # fmt: skip


class GPT2(NamedTuple):
    """Tokenizer and weights of a GPT-2.

    Attributes:
        tokenizer: JSON of the `tokenizers` library.
        end: id of the end-of-text token, which is also the start and padding token.
        shape: maximum number of tokens, width, depth, heads.
        weights: tensors by their names in `CaptionDecoder`.
    """

    tokenizer: str
    end: int
    shape: tuple[int, int, int, int]
    weights: dict[str, Tensor]

    def fill(self, decoder: CaptionDecoder) -> None:
        """Copies all weights; cross-attention to cells, which GPT-2 does not have, is not changed."""
        own = decoder.state_dict()
        for name, tensor in self.weights.items():
            own[name].copy_(tensor[: len(own[name])])


def open_gpt2(path: str, max_tokens: int) -> GPT2:
    """Reads a GPT-2 folder.

    Raises:
        InputError: it is not a GPT-2, is damaged, or has an option that the decoder does not support.
    """
    label = f"decoder.path={path!r}"
    folder = open_folder(path, label, ["gpt2"], lambda found: "not GPT-2; name a GPT-2 folder")
    model, _ = load_model(folder, "GPT2LMHeadModel")
    tokenizer = load_text_tokenizer(folder, model)
    config: Any = model.config
    if config.scale_attn_by_inverse_layer_idx or config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise InputError(
            f"{label} scales attention by layer or has another activation than GPT-2; name a standard GPT-2"
        )
    weights = {
        "tokens.weight": model.transformer.wte.weight,
        "positions.weight": model.transformer.wpe.weight,
        "norm.weight": model.transformer.ln_f.weight,
        "norm.bias": model.transformer.ln_f.bias,
    }
    for i, block in enumerate(model.transformer.h):
        for name, own in _OF_A_BLOCK.items():
            part: Any = block.get_submodule(name)
            weights[f"blocks.{i}.{own}.weight"] = part.weight.T if part.weight.ndim == 2 else part.weight
            weights[f"blocks.{i}.{own}.bias"] = part.bias
    shape = min(max_tokens, config.n_positions), config.n_embd, config.n_layer, config.n_head
    return GPT2(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, shape, weights)
