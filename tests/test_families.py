"""Every family against transformers: logits, weights there and back, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from model.batch import Layout, choose_layout, make_batch
from model.convert import dump_weights, load_weights, read_config, write_config
from model.encoder import Classifier, EncoderConfig
from model.families import FAMILIES
from model.family import ACTIVATION_NAMES, UnsupportedCheckpoint
from model.tokens import Row

if TYPE_CHECKING:
    from pathlib import Path

LAYOUTS: list[Layout] = ["packed", "padded"]
LENGTHS = (5, 40, 5, 1, 64, 23)  # the longest is all that the positions allow
VOCABULARY = 101
SIZES = {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 50}
WIDE = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 7}
DEEP = {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 4, "intermediate_size": 30}
V3 = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "p2c|c2p",
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_buckets": 16,
    "max_relative_positions": -1,
}
DISTIL = {"dim": 36, "n_heads": 3, "n_layers": 2, "hidden_dim": 50}

# Each family's configurations: as published, in small, and at the edges of what its fields allow.
CASES: dict[str, list[dict[str, Any]]] = {
    "bert": [SIZES, WIDE | {"hidden_act": "relu"}, DEEP | {"type_vocab_size": 1, "hidden_act": "gelu_new"}],
    "electra": [
        SIZES | {"embedding_size": 12},
        WIDE | {"embedding_size": 64, "hidden_act": "silu"},
        DEEP | {"embedding_size": 80},
    ],
    "distilbert": [
        DISTIL,
        DISTIL | {"dim": 64, "n_heads": 1, "activation": "relu", "sinusoidal_pos_embds": True},
        {"dim": 40, "n_heads": 5, "n_layers": 4, "hidden_dim": 30, "activation": "gelu"},
    ],
    "roberta": [SIZES | {"type_vocab_size": 1}, WIDE | {"hidden_act": "gelu_fast"}, DEEP | {"layer_norm_eps": 1e-5}],
    "xlm-roberta": [SIZES | {"type_vocab_size": 1}, DEEP | {"pad_token_id": 3}],
    "camembert": [SIZES | {"type_vocab_size": 1}, DEEP],
    "albert": [
        SIZES | {"embedding_size": 12},
        DEEP | {"embedding_size": 40, "num_hidden_groups": 2},
        WIDE | {"embedding_size": 20, "hidden_act": "relu"},
        DEEP | {"num_hidden_layers": 5, "num_hidden_groups": 3},
    ],
    "deberta-v2": [
        SIZES | V3,
        DEEP | V3 | {"share_att_key": False, "norm_rel_ebd": "none", "type_vocab_size": 2},
        SIZES | V3 | {"share_att_key": False, "pos_att_type": ["c2p"], "position_buckets": -1, "embedding_size": 12},
        SIZES | V3 | {"pos_att_type": ["p2c"], "max_relative_positions": 9, "position_buckets": -1},
        DEEP | V3 | {"conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": True},
        SIZES | V3 | {"conv_kernel_size": 5, "conv_groups": 2, "pooler_hidden_act": "tanh", "hidden_act": "relu"},
        WIDE | {"relative_attention": False},
    ],
    "modernbert": [
        SIZES | {"local_attention": 8},
        WIDE | {"num_hidden_layers": 3, "classifier_pooling": "mean", "norm_bias": True},
        DEEP
        | {"local_attention": 4, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
        | {"hidden_activation": "silu", "classifier_pooling": "mean"},
    ],
}
EVERY_CASE = [
    pytest.param(name, case, id=f"{name}-{i}") for name, cases in CASES.items() for i, case in enumerate(cases)
]
ONE_CASE = [pytest.param(name, cases[0], id=name) for name, cases in CASES.items()]


def reference(family: str, settings: dict[str, Any]) -> Any:
    """A classifier of transformers with random weights that make its logits large."""
    torch.manual_seed(1)
    pad_id = settings.get("pad_token_id", 1 if "roberta" in family or family == "camembert" else 0)
    extra = pad_id + 1 if FAMILIES[family].prefix == "roberta." else 0
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 64 + extra, "num_labels": 3, "pad_token_id": pad_id}
    if family == "modernbert":
        common |= {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **(common | settings)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.dim() > 1 else 1.0)
    return model.eval()


def ours(model: Any) -> Classifier:
    classifier = Classifier(read_config(model.config.to_dict()), num_labels=3)
    load_weights(classifier, model.state_dict())
    return classifier.eval()


def random_rows(*, pairs: bool = False) -> list[Row]:
    rows = [Row(torch.randint(4, VOCABULARY, (n,)).tolist()) for n in LENGTHS]
    return [Row(r.ids, [int(i >= len(r.ids) // 2) for i in range(len(r.ids))]) for r in rows] if pairs else rows


@torch.no_grad()
def reference_logits(model: Any, rows: list[Row]) -> torch.Tensor:
    batch = make_batch(rows, "padded", model.config.pad_token_id)
    shape = (len(rows), batch.longest)
    inputs = {"input_ids": batch.ids.view(shape), "attention_mask": (batch.rows < len(rows)).view(shape).long()}
    if any(row.types for row in rows):
        inputs["token_type_ids"] = batch.types.view(shape)
    logits: torch.Tensor = model(**inputs).logits
    return logits


def our_logits(classifier: Classifier, rows: list[Row], layout: Layout) -> torch.Tensor:
    config = classifier.config
    if config.convolution:
        layout = choose_layout(torch.device("cpu"), torch.float32, config)
    with torch.no_grad():
        logits: torch.Tensor = classifier(make_batch(rows, layout, config.pad_id, config.first_position))
    return logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "settings"), EVERY_CASE)
def test_logits_are_those_of_transformers(family: str, settings: dict[str, Any], layout: Layout) -> None:
    model = reference(family, settings)
    rows = random_rows(pairs=getattr(model.config, "type_vocab_size", 0) == 2)
    expected = reference_logits(model, rows)
    assert expected.std() > 0.5  # else any network would agree
    torch.testing.assert_close(our_logits(ours(model), rows, layout), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("activation", [name for names in ACTIVATION_NAMES.values() for name in names])
def test_every_activation_is_that_of_transformers(activation: str) -> None:
    model = reference("bert", SIZES | {"hidden_act": activation})
    rows = random_rows()
    torch.testing.assert_close(
        our_logits(ours(model), rows, "packed"), reference_logits(model, rows), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_that_spells_the_padding_token_has_the_positions_of_transformers(family: str, layout: Layout) -> None:
    model = reference(family, SIZES)
    rows = [Row([5, 1, 7, 1, 1, 9]), Row([5, 6, 7, 8, 9, 10, 11])]
    torch.testing.assert_close(our_logits(ours(model), rows, layout), reference_logits(model, rows), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "settings"), EVERY_CASE)
def test_a_checkpoint_goes_back_as_it_came(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = reference(family, settings)
    classifier = ours(model)
    dumped = dump_weights(classifier)
    assert dumped.keys() == model.state_dict().keys()
    for name, tensor in dumped.items():
        assert torch.equal(tensor, model.state_dict()[name])
    config = write_config(classifier.config) | {"id2label": {str(i): f"l{i}" for i in range(3)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path))
    again.load_state_dict(dumped)
    rows = random_rows()
    torch.testing.assert_close(reference_logits(again.eval(), rows), reference_logits(model, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "settings"), ONE_CASE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_text_scores_the_same_whatever_shares_its_batch(
    family: str, settings: dict[str, Any], layout: Layout, dtype: torch.dtype, atol: float
) -> None:
    torch.manual_seed(0)
    config = read_config(reference(family, settings).config.to_dict())
    classifier = Classifier(config, num_labels=3).eval().to(dtype)
    rows = random_rows()
    alone = torch.cat([our_logits(classifier, [row], layout) for row in rows])
    torch.testing.assert_close(our_logits(classifier, rows, layout), alone, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("bert", {"model_type": "gpt2"}, "model_type"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"hidden_act": "prelu"}, "hidden_act"),
        ("roberta", {"is_decoder": True}, "is_decoder"),
        ("albert", {"inner_group_num": 2}, "inner_group_num"),
        ("deberta-v2", {"pooler_hidden_size": 12}, "pooler_hidden_size"),
        ("deberta-v2", {"pos_att_type": ["c2p"], "relative_attention": False}, "pos_att_type"),
        ("deberta-v2", {"conv_kernel_size": 4}, "convolution"),
        ("modernbert", {"mlp_bias": True}, "mlp_bias"),
        ("electra", {"quantization_config": {"bits": 8}}, "quantization_config"),
        ("distilbert", {"dim": "wide"}, "a value that cannot be"),
    ],
)
def test_a_checkpoint_that_cannot_be_exact_is_refused_by_the_name_of_its_field(
    family: str, change: dict[str, Any], named: str
) -> None:
    config = reference(family, CASES[family][0]).config.to_dict()
    with pytest.raises(ValueError, match=named):
        read_config(config | change)


def test_a_missing_size_is_named() -> None:
    config = reference("roberta", SIZES).config.to_dict()
    del config["hidden_size"]
    with pytest.raises(UnsupportedCheckpoint, match="hidden_size"):
        read_config(config)


def test_a_config_that_the_family_cannot_say_is_not_written() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="cannot hold the configuration: bert"):
        write_config(EncoderConfig(vocab_size=10, pooling="mean"))


def test_a_missing_weight_is_named() -> None:
    model = reference("bert", SIZES)
    weights = {k: v for k, v in model.state_dict().items() if k != "bert.pooler.dense.bias"}
    with pytest.raises(UnsupportedCheckpoint, match="pooler.dense.bias"):
        load_weights(Classifier(read_config(model.config.to_dict()), num_labels=3), weights)
