"""The checkpoint families: how each calls the settings and weights of our encoder, in the terms of model/family.py.

Used by model/convert.py. modernbert_defaults is what training starts from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model.encoder import EncoderConfig, RelativeConfig
from model.family import ACTIVATION_NAMES, Family, Fields, MaskedFamily, Names, UnsupportedCheckpoint, activation

if TYPE_CHECKING:
    from collections.abc import Mapping

# What most families call the same.
NEEDED = ("vocab_size", "width", "layers", "heads", "feed_forward", "max_tokens")
BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "max_tokens": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "pad_id": "pad_token_id",
}
BERT_REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def _bert_names(prefix: str, dense: str, out: str, *, query: str = "attention.self.{}") -> Names:
    """Names of BERT's modules under a prefix, and of the two layers of the head."""
    layer = f"{prefix}encoder.layer.{{i}}"
    return {
        "encoder.embeddings.tokens": (f"{prefix}embeddings.word_embeddings",),
        "encoder.embeddings.positions": (f"{prefix}embeddings.position_embeddings",),
        "encoder.embeddings.types": (f"{prefix}embeddings.token_type_embeddings",),
        "encoder.embeddings.norm": (f"{prefix}embeddings.LayerNorm",),
        "encoder.blocks.{i}.attention.qkv": tuple(f"{layer}.{query.format(x)}" for x in ("query", "key", "value")),
        "encoder.blocks.{i}.attention.out": (f"{layer}.attention.output.dense",),
        "encoder.blocks.{i}.attention_norm": (f"{layer}.attention.output.LayerNorm",),
        "encoder.blocks.{i}.feed_forward.up": (f"{layer}.intermediate.dense",),
        "encoder.blocks.{i}.feed_forward.down": (f"{layer}.output.dense",),
        "encoder.blocks.{i}.feed_forward_norm": (f"{layer}.output.LayerNorm",),
        "head.dense": (dense,),
        "head.out": (out,),
    }


def _bert_masked(architecture: str) -> MaskedFamily:
    head = "cls.predictions"
    return MaskedFamily(architecture, f"{head}.transform.dense", f"{head}.transform.LayerNorm", head)


BERT = Family(
    architecture="BertForSequenceClassification",
    prefix="bert.",
    names=_bert_names("bert.", "bert.pooler.dense", "classifier"),
    masked=_bert_masked("BertForMaskedLM"),
    fields=BERT_FIELDS,
    required=BERT_REQUIRED,
    write=lambda config: {"attention_probs_dropout_prob": 0.0},
)


# ELECTRA: embeddings may be narrower than the layers, and the head has GELU.
def _read_electra(theirs: Mapping[str, Any]) -> Fields:
    narrow = theirs.get("embedding_size", 128)
    return {"embedding_width": None if narrow == theirs["hidden_size"] else narrow}


ELECTRA = Family(
    architecture="ElectraForSequenceClassification",
    prefix="electra.",
    names=_bert_names("electra.", "classifier.dense", "classifier.out_proj")
    | {"encoder.embeddings.project": ("electra.embeddings_project",)},
    masked=MaskedFamily(
        "ElectraForMaskedLM",
        dense="generator_predictions.dense",
        norm="generator_predictions.LayerNorm",
        bias="generator_lm_head",
        activation="gelu",
    ),
    fields=BERT_FIELDS,
    defaults={"head_activation": "gelu"},
    required=BERT_REQUIRED,
    read=_read_electra,
    write=lambda config: {
        "embedding_size": config.embedding_width or config.width,
        "attention_probs_dropout_prob": 0.0,
    },
)


# DistilBERT: no token types, other names.
_DISTILBERT = "distilbert.transformer.layer.{i}"
DISTILBERT = Family(
    architecture="DistilBertForSequenceClassification",
    prefix="distilbert.",
    names={
        "encoder.embeddings.tokens": ("distilbert.embeddings.word_embeddings",),
        "encoder.embeddings.positions": ("distilbert.embeddings.position_embeddings",),
        "encoder.embeddings.norm": ("distilbert.embeddings.LayerNorm",),
        "encoder.blocks.{i}.attention.qkv": tuple(f"{_DISTILBERT}.attention.{x}_lin" for x in ("q", "k", "v")),
        "encoder.blocks.{i}.attention.out": (f"{_DISTILBERT}.attention.out_lin",),
        "encoder.blocks.{i}.attention_norm": (f"{_DISTILBERT}.sa_layer_norm",),
        "encoder.blocks.{i}.feed_forward.up": (f"{_DISTILBERT}.ffn.lin1",),
        "encoder.blocks.{i}.feed_forward.down": (f"{_DISTILBERT}.ffn.lin2",),
        "encoder.blocks.{i}.feed_forward_norm": (f"{_DISTILBERT}.output_layer_norm",),
        "head.dense": ("pre_classifier",),
        "head.out": ("classifier",),
    },
    masked=MaskedFamily("DistilBertForMaskedLM", "vocab_transform", "vocab_layer_norm", "vocab_projector"),
    fields={
        "vocab_size": "vocab_size",
        "width": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "feed_forward": "hidden_dim",
        "max_tokens": "max_position_embeddings",
        "activation": "activation",
        "dropout": "dropout",
        "pad_id": "pad_token_id",
    },
    defaults={"token_types": 0, "head_activation": "relu"},
    write=lambda config: {"attention_dropout": 0.0, "seq_classif_dropout": config.dropout},
)


# RoBERTa and its kin: positions begin after the padding id, so that the table is longer than the longest row.
def _read_roberta(theirs: Mapping[str, Any]) -> Fields:
    first = theirs.get("pad_token_id", 1) + 1
    return {"first_position": first, "max_tokens": theirs["max_position_embeddings"] - first}


def _roberta(name: str) -> Family:
    return Family(
        architecture=f"{name}ForSequenceClassification",
        prefix="roberta.",
        names=_bert_names("roberta.", "classifier.dense", "classifier.out_proj"),
        masked=MaskedFamily(f"{name}ForMaskedLM", "lm_head.dense", "lm_head.layer_norm", "lm_head", "gelu"),
        fields=BERT_FIELDS,
        defaults={"pad_id": 1},
        required=BERT_REQUIRED,
        read=_read_roberta,
        write=lambda config: {
            "max_position_embeddings": config.max_tokens + config.first_position,
            "attention_probs_dropout_prob": 0.0,
        },
    )


# ALBERT: narrow embeddings, and layers that share their weights.
_ALBERT = "albert.encoder.albert_layer_groups.{i}.albert_layers.0"
ALBERT = Family(
    architecture="AlbertForSequenceClassification",
    prefix="albert.",
    names={
        "encoder.embeddings.tokens": ("albert.embeddings.word_embeddings",),
        "encoder.embeddings.positions": ("albert.embeddings.position_embeddings",),
        "encoder.embeddings.types": ("albert.embeddings.token_type_embeddings",),
        "encoder.embeddings.norm": ("albert.embeddings.LayerNorm",),
        "encoder.embeddings.project": ("albert.encoder.embedding_hidden_mapping_in",),
        "encoder.blocks.{i}.attention.qkv": tuple(f"{_ALBERT}.attention.{x}" for x in ("query", "key", "value")),
        "encoder.blocks.{i}.attention.out": (f"{_ALBERT}.attention.dense",),
        "encoder.blocks.{i}.attention_norm": (f"{_ALBERT}.attention.LayerNorm",),
        "encoder.blocks.{i}.feed_forward.up": (f"{_ALBERT}.ffn",),
        "encoder.blocks.{i}.feed_forward.down": (f"{_ALBERT}.ffn_output",),
        "encoder.blocks.{i}.feed_forward_norm": (f"{_ALBERT}.full_layer_layer_norm",),
        "head.dense": ("albert.pooler",),
        "head.out": ("classifier",),
    },
    masked=MaskedFamily("AlbertForMaskedLM", "predictions.dense", "predictions.LayerNorm", "predictions"),
    fields=BERT_FIELDS | {"embedding_width": "embedding_size", "blocks": "num_hidden_groups"},
    defaults={"embedding_width": 128, "blocks": 1, "activation": "gelu_tanh", "dropout": 0.0},
    required=BERT_REQUIRED | {"inner_group_num": 1},
    write=lambda config: {
        "hidden_act": "gelu_new" if config.activation == "gelu_tanh" else ACTIVATION_NAMES[config.activation][0],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": config.dropout,
    },
)


# DeBERTa v2 and v3: attention hears of relative positions; the large v2 have a convolution too.
def _read_deberta(theirs: Mapping[str, Any]) -> Fields:
    width = theirs["hidden_size"]
    narrow = theirs.get("embedding_size") or width
    for key in ("pooler_hidden_size", "attention_head_size"):
        only = width if key == "pooler_hidden_size" else width // theirs["num_attention_heads"]
        if theirs.get(key, only) != only:
            raise UnsupportedCheckpoint(f"config.json: {key} must be {only}: {theirs[key]}")
    kinds = theirs.get("pos_att_type") or []
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    relative = _read_relative(theirs, kinds) if theirs.get("relative_attention", False) else None
    if relative is None and kinds:
        raise UnsupportedCheckpoint(f"config.json: pos_att_type needs relative_attention: {kinds}")
    return {
        "positions": "learned" if theirs.get("position_biased_input", True) else "none",
        "embedding_width": None if narrow == width else narrow,
        "relative": relative,
        "convolution": max(0, theirs.get("conv_kernel_size") or 0),
        "convolution_groups": theirs.get("conv_groups", 1),
        "convolution_activation": activation({"conv_act": "tanh"} | dict(theirs), "conv_act"),
    }


def _read_relative(theirs: Mapping[str, Any], kinds: list[str]) -> RelativeConfig:
    farthest = theirs.get("max_relative_positions", -1)
    farthest = farthest if farthest > 0 else theirs["max_position_embeddings"]
    buckets = max(0, theirs.get("position_buckets", -1))
    return RelativeConfig(
        span=buckets or farthest,
        buckets=buckets,
        max_distance=farthest,
        by_key="c2p" in kinds,
        by_query="p2c" in kinds,
        shared=theirs.get("share_att_key", False),
        norm="layer_norm" in theirs.get("norm_rel_ebd", "none").lower().split("|"),
    )


def _write_deberta(config: EncoderConfig) -> Fields:
    relative = config.relative
    fields: Fields = {
        "position_biased_input": config.positions == "learned",
        "relative_attention": relative is not None,
        "embedding_size": config.embedding_width or config.width,
        "pooler_hidden_size": config.width,
        "conv_kernel_size": config.convolution,
        "conv_groups": config.convolution_groups,
        "conv_act": ACTIVATION_NAMES[config.convolution_activation][0],
        "attention_probs_dropout_prob": 0.0,
        "pooler_dropout": 0.0,
        "cls_dropout": config.dropout,
    }
    if relative is not None:
        fields |= {
            "max_relative_positions": relative.max_distance,
            "position_buckets": relative.buckets or -1,
            "pos_att_type": [kind for kind, on in (("p2c", relative.by_query), ("c2p", relative.by_key)) if on],
            "share_att_key": relative.shared,
            "norm_rel_ebd": "layer_norm" if relative.norm else "none",
        }
    return fields


DEBERTA = Family(
    architecture="DebertaV2ForSequenceClassification",
    prefix="deberta.",
    names=_bert_names("deberta.", "pooler.dense", "classifier", query="attention.self.{}_proj")
    | {
        "encoder.embeddings.project": ("deberta.embeddings.embed_proj",),
        "encoder.relative.vectors": ("deberta.encoder.rel_embeddings",),
        "encoder.relative.norm": ("deberta.encoder.LayerNorm",),
        "encoder.blocks.{i}.attention.position_key": ("deberta.encoder.layer.{i}.attention.self.pos_key_proj",),
        "encoder.blocks.{i}.attention.position_query": ("deberta.encoder.layer.{i}.attention.self.pos_query_proj",),
        "encoder.convolution.conv": ("deberta.encoder.conv.conv",),
        "encoder.convolution.norm": ("deberta.encoder.conv.LayerNorm",),
    },
    masked=_bert_masked("DebertaV2ForMaskedLM"),
    fields=BERT_FIELDS | {"head_activation": "pooler_hidden_act"},
    defaults={"token_types": 0, "norm_eps": 1e-7, "head_activation": "gelu", "project_first": True},
    read=_read_deberta,
    write=_write_deberta,
)


# ModernBERT
def modernbert_defaults(layers: int) -> Fields:
    """How ModernBERT differs from the defaults of EncoderConfig, which are BERT's."""
    return MODERNBERT.defaults | {
        "family": "modernbert",
        "max_tokens": 8192,
        "local_layers": tuple(i for i in range(layers) if i % 3),
        "pooling": "mean",
        "dropout": 0.1,
    }


def _read_modernbert(theirs: Mapping[str, Any]) -> Fields:
    layers, every = theirs["num_hidden_layers"], theirs.get("global_attn_every_n_layers", 3)
    kinds = theirs.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    attention_bias, mlp_bias = theirs.get("attention_bias", False), theirs.get("mlp_bias", False)
    if attention_bias != mlp_bias:
        raise UnsupportedCheckpoint(f"config.json: mlp_bias differs from attention_bias={attention_bias}: {mlp_bias}")
    return {
        "bias": attention_bias,
        "local_layers": tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention"),
        "rope_theta": _rope_theta(theirs, "full_attention", "global_rope_theta", 160_000.0),
        "local_rope_theta": _rope_theta(theirs, "sliding_attention", "local_rope_theta", 10_000.0),
        "pooling": "mean" if theirs.get("classifier_pooling", "cls") == "mean" else "first",
    }


def _rope_theta(theirs: Mapping[str, Any], kind: str, old_field: str, default: float) -> float:
    """The rotary base of one kind of layer; transformers 5 nests it, transformers 4 did not."""
    parameters = (theirs.get("rope_parameters") or {}).get(kind) or {}
    if parameters.get("rope_type", "default") != "default" or theirs.get("rope_scaling"):
        raise UnsupportedCheckpoint(f"config.json: rope_type of {kind} must be default: {parameters.get('rope_type')}")
    return float(parameters.get("rope_theta", theirs.get(old_field, default)))


def _write_modernbert(config: EncoderConfig) -> Fields:
    kinds = ["sliding_attention" if i in config.local_layers else "full_attention" for i in range(config.layers)]
    thetas = {"full_attention": config.rope_theta, "sliding_attention": config.local_rope_theta}
    return {
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "layer_types": kinds,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "classifier_pooling": "mean" if config.pooling == "mean" else "cls",
        "embedding_dropout": config.dropout,
        "classifier_dropout": config.dropout,
        "attention_dropout": 0.0,
    }


MODERNBERT = Family(
    architecture="ModernBertForSequenceClassification",
    prefix="model.",
    names={
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
    masked=MaskedFamily("ModernBertForMaskedLM", "head.dense", "head.norm", "decoder", "head_activation"),
    fields={name: BERT_FIELDS[name] for name in (*NEEDED, "pad_id")}
    | {
        "norm_eps": "norm_eps",
        "norm_bias": "norm_bias",
        "activation": "hidden_activation",
        "local_window": "local_attention",
        "head_activation": "classifier_activation",
        "head_bias": "classifier_bias",
        "dropout": "mlp_dropout",
    },
    defaults={
        "token_types": 0,
        "positions": "rotary",
        "norm": "pre",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "bias": False,
        "gated": True,
        "head_activation": "gelu",
        "head_bias": False,
        "head_norm": True,
        "dropout": 0.0,
    },
    read=_read_modernbert,
    write=_write_modernbert,
)

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "electra": ELECTRA,
    "distilbert": DISTILBERT,
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "albert": ALBERT,
    "deberta-v2": DEBERTA,
    "modernbert": MODERNBERT,
}
