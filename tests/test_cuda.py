"""The varlen layout and the shapes of CUDA graphs, as far as a CPU can show them: with a stand-in for the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_families import CASES, our_logits, ours, random_rows, reference

from model.batch import choose_layout, make_batch
from model.cuda import BUCKETS, bucket_rows, choose_bucket, fill, varlen_batch
from model.tokens import Row

if TYPE_CHECKING:
    from torch import Tensor

WITH_KERNEL = [name for name in CASES if name != "deberta-v2"]
BUCKET = 256


def plain_varlen_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    borders: Tensor,
    *_: object,
    scale: float,
    window_size: tuple[int, int],
    **__: object,
) -> Tensor:
    """What the kernel computes, a row at a time."""
    parts = []
    for start, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        queries, keys, values = (x[start:stop].transpose(0, 1) for x in (q, k, v))  # each (H, L, K)
        at = torch.arange(stop - start)
        near = (at[:, None] - at).abs() <= window_size[0] if window_size[0] >= 0 else None
        parts.append(F.scaled_dot_product_attention(queries, keys, values, near, scale=scale).transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen_attn)


@pytest.mark.parametrize("family", WITH_KERNEL)
def test_rows_one_after_another_have_the_logits_of_packed_ones(family: str) -> None:
    classifier = ours(reference(family, CASES[family][-1]))
    rows = random_rows()
    torch.testing.assert_close(
        our_logits(classifier, rows, "varlen"), our_logits(classifier, rows, "packed"), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_a_batch_filled_up_to_a_graph_has_the_logits_of_the_batch(family: str) -> None:
    classifier = ours(reference(family, CASES[family][-1]))
    config, rows = classifier.config, random_rows()
    batch = make_batch(rows, "varlen", config.pad_id, config.first_position)
    with torch.no_grad():
        filled = classifier(varlen_batch(*fill(batch, BUCKET), longest=BUCKET))
    assert filled.shape[0] == bucket_rows(BUCKET)
    torch.testing.assert_close(filled[: len(rows)], our_logits(classifier, rows, "packed"), rtol=0, atol=1e-4)


@given(st.lists(st.integers(1, 80), min_size=1, max_size=80))
def test_a_graph_holds_every_row_and_one_that_fills_it_up(lengths: list[int]) -> None:
    batch = make_batch([Row([7] * n) for n in lengths], "varlen")
    bucket = choose_bucket(sum(lengths), len(lengths))
    if bucket is None:
        assert sum(lengths) > BUCKETS[-1] or len(lengths) >= bucket_rows(BUCKETS[-1])
        return
    tokens, cu_seqlens = fill(batch, bucket)
    assert tokens[0, : sum(lengths)].tolist() == [7] * sum(lengths)
    assert cu_seqlens.diff()[: len(lengths)].tolist() == lengths
    assert int(cu_seqlens[-1]) == bucket == tokens.shape[1]
    assert len(cu_seqlens) == bucket_rows(bucket) + 1


def test_what_the_kernel_cannot_do_is_padded_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda, half = torch.device("cuda"), torch.bfloat16
    bert, deberta = (ours(reference(name, CASES[name][1])).config for name in ("bert", "deberta-v2"))
    assert choose_layout(cuda, half, bert) == "varlen"
    assert choose_layout(cuda, torch.float32, bert) == "padded"
    assert choose_layout(cuda, half, deberta) == "padded"
    assert choose_layout(torch.device("cpu"), half, bert) == "packed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose_layout(cuda, torch.float16, bert) == "padded"
