"""Layouts and passes."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from model.batch import Block, Layout, fill_passes, make_batch, plan_blocks, plan_passes, round_tokens
from model.tokens import Row

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths, st.integers(1, 200), st.integers(1, 10))
def test_each_row_is_in_one_pass_and_each_pass_keeps_its_budget(n: list[int], budget: int, max_rows: int) -> None:
    passes = plan_passes(n, budget, max_rows)
    assert sorted(i for rows in passes for i in rows) == list(range(len(n)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * max(n[i] for i in rows) <= budget
        assert len(rows) <= max_rows


@given(lengths, st.sampled_from(["packed", "varlen", "padded"]))
def test_a_batch_holds_each_row_in_one_piece(n: list[int], layout: Layout) -> None:
    rows = [Row([100 * i + j for j in range(length)]) for i, length in enumerate(n)]
    batch = make_batch(rows, layout, pad_id=9999)
    for i, row in enumerate(rows):
        at = slice(int(batch.starts[i]), int(batch.starts[i]) + n[i])
        assert batch.ids[at].tolist() == row.ids
        assert batch.positions[at].tolist() == list(range(n[i]))
        assert batch.rows[at].tolist() == [i] * n[i]
    assert int((batch.rows < len(rows)).sum()) == sum(n) == int((batch.ids != 9999).sum())
    if layout == "padded":
        assert sum(s.rows * s.length for s in batch.segments) == batch.tokens.shape[1]


@given(lengths)
def test_no_row_lies_in_two_blocks_and_no_block_is_wider_than_it_says(n: list[int]) -> None:
    blocks = plan_blocks(n)
    assert sorted(i for block in blocks for i in block.rows) == list(range(len(n)))
    assert all(sum(n[i] for i in block.rows) <= block.width for block in blocks)


@given(lengths)
def test_behind_the_blocks_there_is_only_padding(n: list[int]) -> None:
    batch = make_batch([Row([1] * length) for length in n], "packed", pad_id=0)
    assert not batch.ids[batch.segments[-1].span.stop :].any()
    assert (batch.rows[batch.segments[-1].span.stop :] == len(n)).all()


def test_passes_have_few_numbers_of_tokens_for_each_is_a_kernel_in_memory() -> None:
    assert len({round_tokens(tokens) for tokens in range(1, 2049)}) == 48
    assert all(tokens <= round_tokens(tokens) <= tokens + max(7, tokens // 8) for tokens in range(1, 10_000))


def test_short_rows_leave_little_room_in_their_blocks() -> None:
    rng = random.Random(0)
    n = [rng.randint(4, 45) for _ in range(64)]
    assert sum(block.width for block in plan_blocks(n)) < 1.08 * sum(n)
    assert plan_blocks([14]) == [Block(14, [0])]
    assert [block.width for block in plan_blocks([20, 20])] == [48]
    assert [block.width for block in plan_blocks([300, 20, 20])] == [304, 48]


@given(lengths, st.integers(1, 200))
def test_passes_in_order_are_few_and_about_equally_full(n: list[int], budget: int) -> None:
    passes = fill_passes(n, budget)
    assert [i for rows in passes for i in rows] == list(range(len(n)))
    assert len(passes) <= -(-sum(n) // budget)
    for rows in passes:
        assert sum(n[i] for i in rows[:-1]) < budget
