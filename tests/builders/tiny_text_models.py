"""Tiny random towers with real tokenizers, in folders like those of transformers' `save_pretrained`."""

import itertools
import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "star")
CAPTIONS = [
    f"a {size} {colour} {shape} {relation} a {other} ring"
    for size, colour, shape, relation, other in itertools.product(
        ("small", "large"), COLOURS, SHAPES, ("above", "left of"), ("pink", "cyan")
    )
]
_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT = {**_SIZE, "max_position_embeddings": 77, "projection_dim": 24}
_VISION = {**_SIZE, "image_size": 32, "patch_size": 8}


WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _byte_pairs(start: str, end: str, specials: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns a vocabulary and merges that encode up to four letters of a known word as one token.

    They are not trained, as training breaks ties at random.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [letter + end for letter in alphabet if end]
    merges = []
    for word in WORDS:
        letters = [*start, *word[:-1], word[-1] + end]
        for i in range(1, min(len(letters), 4)):
            merges.append(("".join(letters[:i]), letters[i]))
    merges = list(dict.fromkeys(merges))
    tokens += [left + right for left, right in merges]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens + specials))}, merges


def save_clip(folder: Path, kind: str) -> Path:
    """Saves a CLIP; `kind`: a text tower with projection ("projected") or without ("plain"), or both towers ("whole")."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    vocabulary, merges = _byte_pairs("", "</w>", ["<|startoftext|>", "<|endoftext|>"])
    end = vocabulary["<|endoftext|>"]
    text = {**_TEXT, "vocab_size": len(vocabulary), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(0)
    if kind == "whole":
        # the projection's size at the top differs from the default that the text part holds, as in real folders
        text.pop("projection_dim")
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=24))
    else:
        model = {"projected": CLIPTextModelWithProjection, "plain": CLIPTextModel}[kind](CLIPTextConfig(**text))
    _spread(model).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder)
    return folder


def save_clip_with_images(folder: Path) -> Path:
    """Saves a whole CLIP with the preprocessing of its images."""
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return save_clip(folder, "whole")


def save_t5(folder: Path) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(f"\u2581{word}", -4.0) for word in WORDS[::2]] + [(letter, -6.0) for letter in LETTERS]
    torch.manual_seed(1)
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    _spread(T5ForConditionalGeneration(config)).save_pretrained(folder)
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[::2], *LETTERS, *("##" + one for one in LETTERS)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    torch.manual_seed(2)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **_SIZE)
    _spread(BertForMaskedLM(config)).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def save_kin(folder: Path, kind: str) -> Path:
    """Saves a relative of BERT with BERT's tokenizer: roberta, distilbert, mpnet, electra."""
    import transformers

    save_bert(folder)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    shared = {"vocab_size": size, "max_position_embeddings": 130, "pad_token_id": 0}
    of = {"roberta": "Roberta", "distilbert": "DistilBert", "mpnet": "MPNet", "electra": "Electra"}[kind]
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64} if kind == "distilbert" else _SIZE
    torch.manual_seed(4)
    config = getattr(transformers, f"{of}Config")(**shared, **sizes)
    _spread(getattr(transformers, f"{of}Model")(config)).save_pretrained(folder)
    return folder


def save_sentences(folder: Path, pooling: str = "mean_tokens", max_tokens: int = 20, **rules: bool) -> Path:
    """Saves a BERT in the layout of sentence-transformers, with its pooling, limit, case and normalisation."""
    save_bert(folder)
    names = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    switches = {f"pooling_mode_{name}": name == pooling for name in names}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **switches}))
    settings = {"max_seq_length": max_tokens, "do_lower_case": rules.get("lower_case", False)}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
        if kind != "Normalize" or rules.get("unit", True)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def save_gpt2(folder: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    vocabulary, merges = _byte_pairs("\u0120", "", ["<|endoftext|>"])
    torch.manual_seed(3)
    end = vocabulary["<|endoftext|>"]
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=end, eos_token_id=end
    )
    _spread(GPT2LMHeadModel(config)).save_pretrained(folder)
    GPT2Tokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Draws larger random weights than usual, so that attention and position matter for the features."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model
