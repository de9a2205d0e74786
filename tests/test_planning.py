"""What a pass costs, and what is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.planning import EFFICIENT, Cost, even_share, fit_cost, full_pass, plan_pass

lengths = st.lists(st.integers(1, 120), min_size=1, max_size=30)


@given(lengths, st.integers(1, 200), st.booleans(), st.integers(0, 30))
def test_a_pass_takes_the_oldest_and_keeps_its_budget(
    tokens: list[int], budget: int, is_padded: bool, aged: int
) -> None:
    chosen = plan_pass(tokens, budget, is_padded=is_padded, aged=min(aged, len(tokens)))
    assert 0 in chosen
    assert len(chosen) == len(set(chosen))
    lengths = [tokens[i] for i in chosen]
    cost = len(lengths) * max(lengths) if is_padded else sum(lengths)
    assert len(chosen) == 1 or cost <= budget


@given(lengths, st.integers(1, 200), st.booleans())
def test_pass_after_pass_everybody_has_a_turn(tokens: list[int], budget: int, is_padded: bool) -> None:
    waiting = list(enumerate(tokens))
    for _ in tokens:
        plan = plan_pass([length for _, length in waiting], budget, is_padded=is_padded)
        waiting = [entry for i, entry in enumerate(waiting) if i not in plan]
    assert not waiting


def test_padded_rows_are_grouped_by_length_and_others_run_by_age() -> None:
    tokens = [10, 50, 11, 48, 9]
    assert sorted(plan_pass(tokens, 33, is_padded=True)) == [0, 2, 4]
    assert plan_pass(tokens, 71, is_padded=False) == [0, 1, 2]


def test_a_row_that_has_waited_long_is_not_overtaken_by_those_of_a_better_length() -> None:
    assert sorted(plan_pass([10, 50, 11, 48, 9], 110, is_padded=True, aged=2)) == [0, 1]


@given(st.floats(0, 0.01), st.floats(0, 1e-3), st.floats(1e-6, 1e-3))
def test_the_cost_of_passes_is_found_from_their_times(pass_s: float, row_s: float, token_s: float) -> None:
    true = Cost(pass_s, row_s, token_s)
    shapes = [(1, 16), (1, 128), (4, 128), (16, 512), (64, 2048)]
    found = fit_cost([(rows, tokens, true.seconds(rows, tokens)) for rows, tokens in shapes])
    for rows, tokens in shapes:
        assert found.seconds(rows, tokens) == pytest.approx(true.seconds(rows, tokens), rel=1e-3)


def test_times_that_no_cost_explains_give_none_that_is_negative() -> None:
    cost = fit_cost([(1, 16, 0.01), (1, 128, 0.001), (4, 128, 0.001)])
    assert min(cost.pass_s, cost.row_s, cost.token_s) >= 0
    assert cost.seconds(1, 16) > 0


def test_a_full_pass_is_the_smallest_that_the_device_runs_near_its_rate() -> None:
    cost = Cost(pass_s=0.002, row_s=0.0, token_s=4e-5)
    tokens = full_pass(cost, 4096)
    assert tokens / cost.seconds(1, tokens) == pytest.approx(EFFICIENT / cost.token_s, rel=0.01)
    assert full_pass(cost, 512) == 512


def test_passes_that_run_beside_each_other_share_evenly_what_there_is() -> None:
    cost = Cost(pass_s=0.002, row_s=0.0, token_s=4e-5)  # a pass costs as much as 50 tokens
    assert even_share(600, 0, 2, cost) == 300
    assert even_share(400, 200, 2, cost) == 300
    assert even_share(100, 500, 2, cost) == 300  # more than there is: it takes all
    assert even_share(80, 0, 2, cost) == 50  # a smaller one would cost more than it saves
    assert even_share(30, 0, 2, cost) == 30
    assert even_share(600, 600, 1, cost) == 600  # a GPU has them one after the other
