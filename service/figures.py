"""What a load run says: rates and latency quantiles, the knee of the curve, the settings that follow from it.

Pure functions over the samples of service/load.py; no sockets, no clock. Called by service/bench.py and benchmarks/.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from service.load import LOST, UNANSWERED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.load import Floats, Samples

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
NAMES = {LOST: "lost", UNANSWERED: "unanswered"}
OK = "200"
KEPT_UP = 0.99  # of what was offered: then the queue grows by at most a hundredth of the time
P99_GROWTH = 10  # times the p99 at the lowest rate, where no other limit is given
HEADROOM = 0.7  # of the knee, to plan with: arrivals are never even
PATIENCE = 2  # times the p99 at the knee: who waits longer meets an overload

Quantiles = dict[str, float]


@dataclass(frozen=True)
class Answers:
    """Requests with the same outcome. Latencies in ms from the intended start; inf: never answered."""

    count: int
    latency_ms: Quantiles
    server_ms: Quantiles | None  # what the server itself says that it took


@dataclass(frozen=True)
class Figures:
    """One level of load: requests/s of each round, medians over the rounds of all else, counts added up."""

    rates: list[float]  # answered with 200, by the time of the answer
    offered: float  # requests/s, by the intended start
    mean_ms: float  # latency of what was answered with 200
    late_ms: float  # p99 of how much later than intended the generator sent
    busy: float  # share of a core that the generator took
    outcomes: dict[str, Answers]  # by status; "lost": the connection broke; "unanswered"

    @property
    def rate(self) -> float:
        """Requests/s, the median of the rounds."""
        return statistics.median(self.rates)

    @property
    def latency_ms(self) -> Quantiles:
        """Of what was answered with 200."""
        return self.outcomes[OK].latency_ms if OK in self.outcomes else dict.fromkeys(QUANTILES, math.inf)


def figures(samples: Samples) -> Figures:
    """The figures of one round. Latency counts where the intended start is in the window, rate where the answer is."""
    since, sent, until, status, server_ms = samples.rows.T
    seconds = samples.end - samples.start
    counted = (since >= samples.start) & (since < samples.end)
    in_time = (status == int(OK)) & (until >= samples.start) & (until < samples.end)
    latency_ms = (until - since) * 1000
    right = latency_ms[counted & (status == int(OK))]
    return Figures(
        rates=[float(in_time.sum() / seconds)],
        offered=float(counted.sum() / seconds),
        mean_ms=float(right.mean()) if right.size else math.inf,
        late_ms=float(np.quantile((sent - since)[counted], 0.99, method="higher")) * 1000 if counted.any() else 0.0,
        busy=samples.busy,
        outcomes={
            NAMES.get(code, str(code)): _answers(latency_ms[chosen], server_ms[chosen])
            for code in sorted({int(code) for code in status[counted]})
            for chosen in [counted & (status == code)]
        },
    )


def _answers(latency_ms: Floats, server_ms: Floats) -> Answers:
    told = server_ms[~np.isnan(server_ms)]
    return Answers(len(latency_ms), quantiles(latency_ms), quantiles(told) if told.size else None)


def quantiles(values: Floats) -> Quantiles:
    """QUANTILES of values that were seen, none in between."""
    return {name: float(np.quantile(values, q, method="higher")) for name, q in QUANTILES.items()}


def together(rounds: Sequence[Figures]) -> Figures:
    """The rounds of one level as one: a round that a neighbour disturbed does not decide."""
    names = sorted({name for one in rounds for name in one.outcomes})
    return Figures(
        rates=[rate for one in rounds for rate in one.rates],
        offered=statistics.median(one.offered for one in rounds),
        mean_ms=statistics.median(one.mean_ms for one in rounds),
        late_ms=statistics.median(one.late_ms for one in rounds),
        busy=statistics.median(one.busy for one in rounds),
        outcomes={name: _merged([one.outcomes[name] for one in rounds if name in one.outcomes]) for name in names},
    )


def _merged(rounds: Sequence[Answers]) -> Answers:
    told = [one.server_ms for one in rounds if one.server_ms]
    return Answers(
        sum(one.count for one in rounds), _medians([one.latency_ms for one in rounds]), _medians(told) if told else None
    )


def _medians(rounds: Sequence[Quantiles]) -> Quantiles:
    return {name: statistics.median(one[name] for one in rounds) for name in QUANTILES}


def knee(levels: Sequence[Figures], p99_ms: float | None = None) -> Figures | None:
    """The highest offered rate that the server sustains, of levels in an open loop; None if it sustains none.

    Sustained: at least KEPT_UP of what is offered is answered in time, and p99 is at most p99_ms, by default
    P99_GROWTH times the p99 at the lowest rate.
    """
    if not levels:
        return None
    ordered = sorted(levels, key=lambda level: level.offered)
    limit = p99_ms or P99_GROWTH * ordered[0].latency_ms["p99"]

    def is_sustained(level: Figures) -> bool:
        return level.rate >= KEPT_UP * level.offered and level.latency_ms["p99"] <= limit < math.inf

    return next(filter(is_sustained, reversed(ordered)), None)


@dataclass(frozen=True)
class Setting:
    """A recommended value and what it follows from."""

    name: str
    value: int
    why: str


def recommend(
    knee: Figures, ahead: Figures, tokens_per_request: float, wanted_rate: float | None = None
) -> list[Setting]:
    """Settings of a server with this knee, whose figures at HEADROOM of it are `ahead`.

    tokens_per_request is nan where the answers do not tell; wanted_rate is the traffic to plan for, in requests/s.
    """
    p99 = knee.latency_ms["p99"]
    timeout_ms = round_up(PATIENCE * p99)
    settings = [
        Setting("timeout_ms", timeout_ms, f"{PATIENCE} x the p99 at the knee, {p99:.0f} ms: longer means overload")
    ]
    if not math.isnan(tokens_per_request):
        tokens_per_s = knee.rate * tokens_per_request
        why = f"answered within timeout_ms at {tokens_per_s:,.0f} tokens/s; over all replicas, >= max_batch_tokens each"
        settings.append(Setting("max_queue_tokens", round_up(tokens_per_s * timeout_ms / 1000), why))
    in_flight = max(1, round(ahead.rate * ahead.mean_ms / 1000))  # Little's law
    why = f"requests under way at {HEADROOM:.0%} of the knee ({ahead.rate:,.0f} requests/s), all replicas: to scale at"
    settings.append(Setting("ongoing requests", in_flight, why))
    if wanted_rate:
        why = f"times what runs now, for {wanted_rate:,.0f} requests/s at {HEADROOM:.0%} of the knee"
        settings.append(Setting("replicas", math.ceil(wanted_rate / (HEADROOM * knee.rate)), why))
    return settings


def round_up(value: float) -> int:
    """To two leading digits: 1234 -> 1300."""
    step = 10 ** max(0, math.floor(math.log10(value)) - 1) if value > 0 else 1
    return max(1, math.ceil(value / step) * step)
