"""The autoscaling policy over traces of traffic, without Ray."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from service.autoscaling import UP_AFTER_S, Load, Policy, wanted_replicas

if TYPE_CHECKING:
    from collections.abc import Sequence

UP_WAIT_S, DEADLINE_S, START_S, CALM_S = 0.25, 10.0, 8, 60
BUSY, IDLE = Load(1.0, 0.01), Load(0.0, 0.0)


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [
        ([IDLE], 1),
        ([BUSY], 1),  # always computing, yet nobody waits: passes are not full
        ([Load(1.0, 0.26)], 2),
        ([Load(1.0, 9.0)], 2),  # twice as many at once, at most
        ([Load(1.0, 9.0)] * 3, 6),
        ([Load(1.0, 9.0), IDLE], 2),  # the second is enough for what comes
        ([Load(0.6, 0.0), Load(0.1, 0.2)], 2),  # somebody waits
        ([Load(0.3, 0.0), Load(0.2, 0.0)], 1),
        ([Load(0.4, 0.0), Load(0.4, 0.0)], 2),  # one alone would be busy for over CALM_BUSY
        ([IDLE] * 8, 1),
    ],
)
def test_more_are_wanted_where_texts_wait_and_fewer_where_all_are_calm(loads: list[Load], wanted: int) -> None:
    assert wanted_replicas(loads, UP_WAIT_S) == wanted


def replay(arrivals: Sequence[float], most: int) -> tuple[list[int], float]:
    """Replicas each second, and the longest wait in seconds, under arrivals a second of a replica's capacity.

    A text goes to the shortest queue; a replica takes START_S to start. The delays are Ray's: a decision counts when
    it has been the same direction for so long.
    """
    policy, queues, starting, target = Policy(UP_WAIT_S), [0.0], [0], 1
    since, direction, history, longest = 0, 0, [], 0.0
    for now, arriving in enumerate(arrivals):
        queues += [0.0 for at in starting if at == now and now]
        for _ in range(100):  # a hundredth of the second's texts at a time
            i = min(range(len(queues)), key=queues.__getitem__)
            queues[i] += arriving / 100
            queues = [max(0.0, queue - 0.01) for queue in queues]
        busy = min(1.0, arriving / len(queues))
        context = SimpleNamespace(
            aggregated_metrics={
                "busy": dict.fromkeys(range(len(queues)), busy),
                "wait_s": dict(enumerate(queues)),
            },
            target_num_replicas=target,
        )
        wanted = max(1, min(most, policy(context)[0]))
        sign = (wanted > target) - (wanted < target)
        since, direction = (since, direction) if sign == direction else (now, sign)
        if sign and now - since >= (UP_AFTER_S if sign > 0 else CALM_S):
            starting += [now + START_S] * max(0, wanted - target)
            target, direction = wanted, 0
            queues = queues[: max(target, 1)] if sign < 0 else queues
        history.append(target)
        longest = max(longest, *queues)
    return history, longest


def test_a_rise_brings_replicas_before_deadlines_are_missed_and_its_end_takes_them_away_again() -> None:
    rise = [min(3.0, 0.5 + second * 0.02) for second in range(300)]
    history, longest = replay([*rise, *[0.3] * 300], most=4)
    assert longest < DEADLINE_S
    assert max(history) == 4
    assert history[-1] == 1
    assert history[-300 - 1] == max(history)


def test_traffic_that_swings_around_a_threshold_does_not_make_replicas_come_and_go() -> None:
    swings = [0.2, 1.2] * 10 * 30  # a second each: the mean is 0.7 of one replica
    history, _ = replay(swings, most=4)
    assert sum(a != b for a, b in pairwise(history)) <= 1


def test_a_peak_that_is_over_before_anybody_waits_long_changes_nothing() -> None:
    history, _ = replay([*[0.5] * 20, 1.2, *[0.5] * 20], most=4)
    assert set(history) == {1}


@pytest.mark.parametrize("reported", [None, {}, {"busy": {"a": 1.0}, "wait_s": {"a": 9.0}}])
def test_nothing_changes_until_every_replica_has_reported(reported: dict[str, dict[str, float]] | None) -> None:
    assert Policy(UP_WAIT_S)(SimpleNamespace(aggregated_metrics=reported, target_num_replicas=3)) == (3, {})
