"""The pretrained text towers that are supported, by family."""

from typing import Any

from torch import Tensor, nn

from t2i.pretrained import ModelFolder, find_folder, load_config, load_model, load_text_tokenizer, open_folder
from t2i.text import TextConfig
from t2i.text.pretrained import PretrainedText, ReadingRules
from t2i.text.sentences import read_rules


class CLIPText(PretrainedText):
    """The text tower of CLIP (Radford et al., ICML 2021), from a full CLIP model or from the text tower alone."""

    name = "clip"
    model_types = dict.fromkeys(("clip", "clip_text_model"), "CLIPTextModelWithProjection")
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps", "eos_token_id")
    pooling = "eos/1"

    def __init__(self, tower: nn.Module, tokenizer: Any, reading: ReadingRules):
        super().__init__(tower, tokenizer, reading._replace(pooling=()))
        self._is_projected = hasattr(tower, "text_projection")
        if self._is_projected:
            self.pooled_dim = self._config.projection_dim

    @classmethod
    def _load_tower(cls, folder: ModelFolder) -> tuple[Any, Any]:
        config = load_config(folder)
        if config.model_type == "clip":  # the text part may have another, wrong size of the projection
            config.text_config.projection_dim = config.projection_dim
            config = config.text_config
        projection = "text_projection.weight"
        class_name = cls.model_types["clip"]
        tower, missing = load_model(folder, class_name, [projection], config=config, attn_implementation="eager")
        tower = tower.text_model if missing else tower
        return tower, load_text_tokenizer(folder, tower)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        return output.text_embeds if self._is_projected else output.pooler_output


class T5Text(PretrainedText):
    """The encoder of T5 (Raffel et al., JMLR 2020; also v1.1, Flan, mT5 and UMT5), without the decoder."""

    name = "t5"
    model_types = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    decisive = (
        "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance", "feed_forward_proj",
        "layer_norm_epsilon",
    )  # fmt: skip
    pooling = "mean/1"


class BertText(PretrainedText):
    """BERT (Devlin et al., NAACL 2019) and related models."""

    name = "bert"
    model_types = {
        "bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel", "camembert": "CamembertModel",
        "distilbert": "DistilBertModel", "mpnet": "MPNetModel", "electra": "ElectraModel",
    }  # fmt: skip
    decisive = ("num_attention_heads", "hidden_act", "layer_norm_eps")
    pooling = "mean/1"


class GPT2Text(PretrainedText):
    """GPT-2 (Radford et al., 2019). As attention is causal, padding on the right does not affect the states."""

    name = "gpt2"
    model_types = {"gpt2": "GPT2Model"}
    decisive = (
        "num_attention_heads", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
    )  # fmt: skip
    pooling = "last/1"


def load_tower(path: str) -> PretrainedText:
    """Returns the encoder for the tower at a path, of any supported kind.

    Raises:
        InputError: the path is not a folder or hub id of a supported tower.
    """
    label = f"text.path={path!r}"
    root = find_folder(path, label)
    rules = read_rules(root)
    kinds = {kind: reader for reader in PretrainedText.__subclasses__() for kind in reader.model_types}
    known = "; ".join(f"{reader.name}: {', '.join(reader.model_types)}" for reader in PretrainedText.__subclasses__())
    folder = open_folder(rules.tower if rules else root, label, kinds, lambda found: f"none of {known}; name another")
    reader = kinds[folder.config["model_type"]]
    return reader.fit(TextConfig.model_validate({"encoder": reader.name, "path": path}), [])
