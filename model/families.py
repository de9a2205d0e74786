"""Checkpoint families <-> ours, both ways: settings of config.json and names of the weights.

A family is a row in two tables. A checkpoint that our encoder cannot represent exactly is refused with
the field that stands in the way. Called by model/bundle.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from model.encoder import Classifier, EncoderConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

# Hugging Face's names of our activations; the first is the one we write.
ACTIVATION_NAMES = {
    "gelu": ("gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}

# Our module name -> theirs. {i} is a layer. Several names are one matrix of ours, cut by rows.
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "bert": {
        "encoder.embeddings.tokens": ("bert.embeddings.word_embeddings",),
        "encoder.embeddings.positions": ("bert.embeddings.position_embeddings",),
        "encoder.embeddings.types": ("bert.embeddings.token_type_embeddings",),
        "encoder.embeddings.norm": ("bert.embeddings.LayerNorm",),
        "encoder.blocks.{i}.attention.qkv": (
            "bert.encoder.layer.{i}.attention.self.query",
            "bert.encoder.layer.{i}.attention.self.key",
            "bert.encoder.layer.{i}.attention.self.value",
        ),
        "encoder.blocks.{i}.attention.out": ("bert.encoder.layer.{i}.attention.output.dense",),
        "encoder.blocks.{i}.attention_norm": ("bert.encoder.layer.{i}.attention.output.LayerNorm",),
        "encoder.blocks.{i}.feed_forward.up": ("bert.encoder.layer.{i}.intermediate.dense",),
        "encoder.blocks.{i}.feed_forward.down": ("bert.encoder.layer.{i}.output.dense",),
        "encoder.blocks.{i}.feed_forward_norm": ("bert.encoder.layer.{i}.output.LayerNorm",),
        "head.dense": ("bert.pooler.dense",),
        "head.out": ("classifier",),
    },
    "modernbert": {
        "encoder.embeddings.tokens": ("model.embeddings.tok_embeddings",),
        "encoder.embeddings.norm": ("model.embeddings.norm",),
        "encoder.blocks.{i}.attention_norm": ("model.layers.{i}.attn_norm",),
        "encoder.blocks.{i}.attention.qkv": ("model.layers.{i}.attn.Wqkv",),
        "encoder.blocks.{i}.attention.out": ("model.layers.{i}.attn.Wo",),
        "encoder.blocks.{i}.feed_forward_norm": ("model.layers.{i}.mlp_norm",),
        "encoder.blocks.{i}.feed_forward.up": ("model.layers.{i}.mlp.Wi",),
        "encoder.blocks.{i}.feed_forward.down": ("model.layers.{i}.mlp.Wo",),
        "encoder.final_norm": ("model.final_norm",),
        "head.dense": ("head.dense",),
        "head.norm": ("head.norm",),
        "head.out": ("classifier",),
    },
}
PREFIX = {"bert": "bert.", "modernbert": "model."}  # absent from checkpoints of a bare encoder
ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
}
HEAD = "head."  # the weights that a bare encoder does not have
LABEL_LAYER = "head.out."
WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class UnsupportedCheckpoint(ValueError):
    """A checkpoint that this encoder would not reproduce exactly."""


def modernbert_defaults(layers: int) -> dict[str, Any]:
    """How ModernBERT differs from the defaults of EncoderConfig, which are BERT's."""
    return {
        "family": "modernbert",
        "max_tokens": 8192,
        "token_types": 0,
        "positions": "rotary",
        "norm": "pre",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "bias": False,
        "gated": True,
        "local_layers": tuple(i for i in range(layers) if i % 3),
        "pooling": "mean",
        "head_activation": "gelu",
        "head_bias": False,
        "head_norm": True,
    }


def read_config(theirs: Mapping[str, Any]) -> EncoderConfig:
    """config.json of a checkpoint -> EncoderConfig.

    Raises UnsupportedCheckpoint naming the field that our encoder cannot represent.
    """
    family = theirs.get("model_type")
    if family not in NAMES:
        raise UnsupportedCheckpoint(f"config.json: model_type is not one of {', '.join(NAMES)}: {family}")
    if theirs.get("quantization_config"):
        raise UnsupportedCheckpoint("config.json: quantization_config must be absent, give the weights before it")
    try:
        return _read_bert(theirs) if family == "bert" else _read_modernbert(theirs)
    except KeyError as error:
        raise UnsupportedCheckpoint(f"config.json: a field is missing: {error}") from None
    except (TypeError, ZeroDivisionError) as error:  # a string for a number, null, 0 heads
        raise UnsupportedCheckpoint(f"config.json: a field has a value that cannot be: {error}") from None


def write_config(config: EncoderConfig) -> dict[str, Any]:
    """EncoderConfig -> the fields of config.json that the family reads.

    Raises UnsupportedCheckpoint for a config that the family cannot say, such as a BERT with mean pooling.
    """
    fields = _write_bert(config) if config.family == "bert" else _write_modernbert(config)
    fields = {"model_type": config.family, "architectures": [ARCHITECTURES[config.family]], **fields}
    if read_config(fields) != config:
        raise UnsupportedCheckpoint(f"a checkpoint of this family cannot hold the configuration: {config.family}")
    return fields


def _read_bert(theirs: Mapping[str, Any]) -> EncoderConfig:
    _require(theirs, "position_embedding_type", "absolute")
    _require(theirs, "is_decoder", False)
    _require(theirs, "add_cross_attention", False)
    return EncoderConfig(
        family="bert",
        vocab_size=theirs["vocab_size"],
        width=theirs["hidden_size"],
        layers=theirs["num_hidden_layers"],
        heads=theirs["num_attention_heads"],
        feed_forward=theirs["intermediate_size"],
        max_tokens=theirs["max_position_embeddings"],
        token_types=theirs.get("type_vocab_size", 2),
        norm_eps=theirs.get("layer_norm_eps", 1e-12),
        activation=_activation(theirs, "hidden_act"),
        dropout=theirs.get("hidden_dropout_prob", 0.1),
        pad_id=theirs.get("pad_token_id") or 0,
    )


def _write_bert(config: EncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.max_tokens,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation][0],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": config.pad_id,
    }


def _read_modernbert(theirs: Mapping[str, Any]) -> EncoderConfig:
    layers = theirs["num_hidden_layers"]
    every = theirs.get("global_attn_every_n_layers", 3)
    kinds = theirs.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    attention_bias, mlp_bias = theirs.get("attention_bias", False), theirs.get("mlp_bias", False)
    if attention_bias != mlp_bias:
        raise UnsupportedCheckpoint(f"config.json: mlp_bias differs from attention_bias={attention_bias}: {mlp_bias}")
    return EncoderConfig(
        family="modernbert",
        vocab_size=theirs["vocab_size"],
        width=theirs["hidden_size"],
        layers=layers,
        heads=theirs["num_attention_heads"],
        feed_forward=theirs["intermediate_size"],
        max_tokens=theirs["max_position_embeddings"],
        token_types=0,
        positions="rotary",
        norm="pre",
        norm_eps=theirs.get("norm_eps", 1e-5),
        norm_bias=theirs.get("norm_bias", False),
        bias=attention_bias,
        activation=_activation(theirs, "hidden_activation"),
        gated=True,
        local_window=theirs.get("local_attention", 128),
        local_layers=tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention"),
        rope_theta=_rope_theta(theirs, "full_attention", "global_rope_theta", 160_000.0),
        local_rope_theta=_rope_theta(theirs, "sliding_attention", "local_rope_theta", 10_000.0),
        pooling="mean" if theirs.get("classifier_pooling", "cls") == "mean" else "first",
        head_activation=_activation(theirs, "classifier_activation"),
        head_bias=theirs.get("classifier_bias", False),
        head_norm=True,
        dropout=theirs.get("mlp_dropout", 0.0),
        pad_id=theirs.get("pad_token_id") or 0,
    )


def _write_modernbert(config: EncoderConfig) -> dict[str, Any]:
    kinds = ["sliding_attention" if i in config.local_layers else "full_attention" for i in range(config.layers)]
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward,
        "max_position_embeddings": config.max_tokens,
        "norm_eps": config.norm_eps,
        "norm_bias": config.norm_bias,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "hidden_activation": ACTIVATION_NAMES[config.activation][0],
        "local_attention": config.local_window,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        "classifier_pooling": "mean" if config.pooling == "mean" else "cls",
        "classifier_activation": ACTIVATION_NAMES[config.head_activation][0],
        "classifier_bias": config.head_bias,
        "embedding_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "classifier_dropout": config.dropout,
        "attention_dropout": 0.0,
        "pad_token_id": config.pad_id,
    }


def _require(theirs: Mapping[str, Any], field: str, value: object) -> None:
    if theirs.get(field, value) != value:
        raise UnsupportedCheckpoint(f"config.json: {field} must be {value}: {theirs[field]}")


def _activation(theirs: Mapping[str, Any], field: str) -> str:
    name = theirs.get(field, "gelu")
    for ours, names in ACTIVATION_NAMES.items():
        if name in names:
            return ours
    raise UnsupportedCheckpoint(f"config.json: {field} is not an activation of ours: {name}")


def _rope_theta(theirs: Mapping[str, Any], kind: str, old_field: str, default: float) -> float:
    """The rotary base of one kind of layer; transformers 5 nests it, transformers 4 did not."""
    parameters = (theirs.get("rope_parameters") or {}).get(kind) or {}
    if parameters.get("rope_type", "default") != "default" or theirs.get("rope_scaling"):
        raise UnsupportedCheckpoint(f"config.json: rope_type of {kind} must be default: {parameters.get('rope_type')}")
    return float(parameters.get("rope_theta", theirs.get(old_field, default)))


def load_weights(classifier: Classifier, weights: Mapping[str, Tensor], *, bare: bool = False) -> None:
    """Copy a checkpoint's weights into ours.

    bare: only the encoder matters. What the checkpoint lacks of the head stays as initialised, and so does
    the label layer in any case: its labels are others.
    Raises UnsupportedCheckpoint naming a weight that is missing or has another shape.
    """
    family = classifier.config.family
    stripped = not any(name.startswith(PREFIX[family]) for name in weights)
    for ours, tensor, theirs in _named(classifier):
        names = [name.removeprefix(PREFIX[family]) if stripped else name for name in theirs]
        if bare and (ours.startswith(LABEL_LAYER) or (ours.startswith(HEAD) and names[0] not in weights)):
            continue
        missing = [name for name in names if name not in weights]
        if missing:
            raise UnsupportedCheckpoint(f"model.safetensors has no weight named {missing[0]}")
        value = torch.cat([weights[name] for name in names])
        if value.shape != tensor.shape:
            got, want = tuple(value.shape), tuple(tensor.shape)
            raise UnsupportedCheckpoint(f"model.safetensors: shape of {names[0]} must be {want}: {got}")
        if value.dtype not in WEIGHT_DTYPES:
            raise UnsupportedCheckpoint(
                f"model.safetensors: type of {names[0]} is not fp32, fp16 or bf16: {value.dtype}"
            )
        tensor.data.copy_(value)


def dump_weights(classifier: Classifier) -> dict[str, Tensor]:
    """Our weights under the family's names; the reverse of load_weights."""
    weights: dict[str, Tensor] = {}
    for _, tensor, theirs in _named(classifier):
        for name, part in zip(theirs, tensor.detach().chunk(len(theirs)), strict=True):
            weights[name] = part.contiguous()
    return weights


def _named(classifier: Classifier) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Each parameter of ours: its name, itself, and the family's names for its parts."""
    table = NAMES[classifier.config.family]
    for ours, tensor in classifier.named_parameters():
        module, _, kind = ours.rpartition(".")  # kind: weight or bias
        layer = next((part for part in module.split(".") if part.isdigit()), "")
        pattern = module.replace(f".{layer}.", ".{i}.") if layer else module
        yield ours, tensor, [f"{name.format(i=layer)}.{kind}" for name in table[pattern]]
