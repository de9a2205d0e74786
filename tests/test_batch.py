"""Layouts and passes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.batch import MULTIPLE, Layout, make_batch, plan_passes
from model.tokens import Row

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths, st.integers(1, 200), st.integers(1, 10))
def test_each_row_is_in_one_pass_and_each_pass_keeps_its_budget(n: list[int], budget: int, max_rows: int) -> None:
    passes = plan_passes(n, budget, max_rows)
    assert sorted(i for rows in passes for i in rows) == list(range(len(n)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * max(n[i] for i in rows) <= budget
        assert len(rows) <= max_rows


@given(lengths, st.sampled_from(["packed", "padded"]))
def test_a_batch_holds_every_token_and_returns_to_the_callers_order(n: list[int], layout: Layout) -> None:
    rows = [Row([i + 1] * length) for i, length in enumerate(n)]
    batch = make_batch(rows, layout)
    firsts = torch.cat([batch.ids[s.span].view(s.rows, s.length)[:, 0] for s in batch.segments])
    assert (firsts if batch.back is None else firsts[batch.back]).tolist() == [i + 1 for i in range(len(n))]
    assert int((batch.ids > 0).sum()) == sum(n)
    if layout == "packed":
        assert batch.keep is None
        assert sum(n) <= len(batch.ids) < sum(n) + MULTIPLE
    else:
        assert len(batch.ids) == len(n) * max(n)
        assert batch.keep is None or int(batch.keep.sum()) == sum(n)
