"""config.json in Hugging Face's layout: settings by our names, and back."""

from pathlib import Path
from typing import Any

from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.parsing import is_number, whole_number
from vilem_jax.typing import JsonObject
from vilem_jax.weights.folders import CONFIG, Tensors, read_config

# What BERT and ViT share: our name, Hugging Face's.
_SHARED = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


class Settings:
    """The config.json of weights; its errors name the file and the key.

    Args:
      model_types: those that are accepted.
      section: the key of a section that is read instead of the top.

    Raises:
      UserError: no config.json, one of another model, or no such section.
    """

    def __init__(self, source: Tensors | Path, *model_types: str, section: str = ""):
        folder = source.folder if isinstance(source, Tensors) else Path(source)
        self.file, values = folder / CONFIG, read_config(folder)
        kind = values.get("model_type", model_types[0])
        if kind not in model_types:
            raise UserError(
                f"{self.file}: model_type is {kind!r}, but a "
                f"{' or '.join(map(repr, model_types))} is needed here"
            )
        if section and not isinstance(values.get(section), dict):
            raise UserError(f"{self.file} has no {section}")
        self.values: JsonObject = values[section] if section else values

    def number(self, key: str, kind: type = int, default: float | None = None) -> Any:
        """One positive number; `kind` is int or float. Missing, it is `default`."""
        value = self.values.get(key, default)
        is_kind = is_number(value) if kind is float else whole_number(value) is not None
        if not is_kind or value <= 0:
            raise UserError(
                f"{self.file}: {key} must be a positive {kind.__name__}, not {value!r}"
            )
        return kind(value)

    def layers(self, epsilon: float | None = None) -> JsonObject:
        """The settings that BERT and ViT share, by our names.

        Args:
          epsilon: of layer norms, if the file has none; None: it must have one.
        """
        activation = self.values.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise UserError(
                f"{self.file}: hidden_act {activation!r} is not supported; "
                f"{', '.join(_ACTIVATIONS)} are"
            )
        return {ours: self.number(key) for ours, key in _SHARED.items()} | {
            "layer_norm_eps": self.number("layer_norm_eps", float, epsilon),
            "activation": _ACTIVATIONS[activation],
        }


def layer_settings(config: TextConfig | VisionConfig, dropout: float) -> JsonObject:
    """The other direction of `Settings.layers`, with the rate of dropout."""
    return {key: getattr(config, ours) for ours, key in _SHARED.items()} | {
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": "gelu" if config.activation == "gelu" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
