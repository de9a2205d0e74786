"""`heed bench`: load a running server, find its knee, say which settings follow.

Reads: texts -> requests -> one probe -> closed loops -> open loops around their peak -> knee -> settings. The load
is made in service/load.py, the figures in service/figures.py. No torch, no Ray: nothing but the load takes a core.
"""

from __future__ import annotations

import dataclasses
import http.client
import itertools
import json
import math
import os
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from model.records import read_texts
from service.figures import HEADROOM, figures, knee, recommend, together
from service.load import JSON, closed_loop, open_loop, run, target

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from model.tokens import Text
    from service.figures import Figures, Setting
    from service.load import Samples, Target

Level = TypeVar("Level", int, float)

DEFAULT_PATH = "/v1/classify"
MAX_TEXTS = 20_000  # of a file: enough that no two in flight are the same
ROUNDS = 3
COARSE = (0.5, 0.7, 0.85, 1.0, 1.15)  # offered rates, as shares of the best closed loop
HIGHER, MAX_LEVELS = 1.25, 12  # where none of them is too much
FINE = (0.25, 0.5, 0.75)  # of the way from the knee to the next rate
PROBE_S = 30.0
LATE_MS, BUSY = 5.0, 0.9  # from which on the generator is to blame
WORDS = """
the a this of and in with for it was is not but very film story service room food price phone battery staff time good
great fine lovely bad poor slow dull broken friendly clean late early never always again would recommend return delivery
support screen quality money waste happy disappointed expected because although when after before people
"""


class CannotBench(ValueError):
    """There is nothing to measure; the message says why."""


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `heed bench`."""
    parser.add_argument(
        "url", metavar="URL", help=f"of a running server; without a path: {DEFAULT_PATH}. A key: HEED_API_KEY"
    )
    parser.add_argument("--data", metavar="FILE", help="texts to send, in a data file; default: made-up sentences")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="field that holds the text")
    parser.add_argument(
        "--connections", type=numbers, default=[1, 8, 32, 128], metavar="N,...", help="default: 1,8,32,128"
    )
    parser.add_argument("--texts-per-request", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--seconds", type=positive_float, default=2.0, help="of a round; each load has three; default: 2"
    )
    parser.add_argument(
        "--p99-ms",
        type=positive_float,
        metavar="MS",
        help="latency that the knee has to hold; default: ten times that at half the load",
    )
    parser.add_argument(
        "--rate", type=positive_float, metavar="N", help="requests/s that you expect: how many replicas it takes"
    )
    parser.add_argument("--poisson", action="store_true", help="random arrivals in the open loop, not even ones")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")


def positive(value: str) -> int:
    """A whole number from 1."""
    number = int(value)
    if number < 1:
        raise ValueError(value)
    return number


def positive_float(value: str) -> float:
    """A number over 0."""
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(value)
    return number


def numbers(value: str) -> list[int]:
    """1,8,32."""
    return [positive(part) for part in value.split(",")]


def bench_command(args: argparse.Namespace) -> int:
    """Measure the server and print what it can do."""
    texts = list(itertools.islice(read_texts(args.data, args.text_column), MAX_TEXTS)) if args.data else sentences()
    url = with_path(args.url)
    headers = with_key(os.environ)
    to = target(url, bodies(texts, args.texts_per_request), headers)
    plan = Plan(args.connections, args.seconds, args.p99_ms, args.rate, poisson=args.poisson)
    report = bench(to, plan, probe(to, url, headers))
    print(json.dumps(as_json(report)) if args.json else tables(report, args.texts_per_request))
    return 0


def with_path(url: str) -> str:
    """The URL that requests go to: without a path of its own, DEFAULT_PATH."""
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + DEFAULT_PATH


def sentences(n: int = 2000) -> list[Text]:
    """Sentences of 1 to 200 words, always the same; half of them are shorter than 15."""
    rng, words = random.Random(0), WORDS.split()
    return [" ".join(rng.choices(words, k=min(200, 1 + int(rng.lognormvariate(2.6, 0.8))))) for _ in range(n)]


def bodies(texts: Sequence[Text], per_request: int) -> list[bytes]:
    """Requests of so many texts each; the last may have texts of the first again. Raises CannotBench without texts."""
    if not texts:
        raise CannotBench("the data file has no texts")
    field = "texts" if isinstance(texts[0], str) else "pairs"
    some = itertools.cycle(texts)
    count = math.ceil(len(texts) / per_request)
    return [json.dumps({field: [*itertools.islice(some, per_request)]}).encode() for _ in range(count)]


def with_key(environment: Mapping[str, str]) -> dict[str, str]:
    """Headers of a request. The key is no flag: others could read it in the list of processes."""
    key = environment.get("HEED_API_KEY")
    return JSON | ({"Authorization": f"Bearer {key}"} if key else {})


def probe(to: Target, url: str, headers: dict[str, str]) -> float:
    """Ask once before the load: tokens of a request, nan where the answers do not tell.

    Raises CannotBench where nothing listens, or where the answer is an error.
    """
    kind = http.client.HTTPSConnection if to.is_tls else http.client.HTTPConnection
    connection = kind(to.host, to.port, timeout=PROBE_S)
    counts = []
    try:
        for request in to.requests[:: max(1, len(to.requests) // 50)]:
            body = request.partition(b"\r\n\r\n")[2]
            connection.request("POST", urlsplit(url).path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise CannotBench(f"{url} answers {answer.status}: {message(content)}")
            counts.append(tokens(content))
    except (OSError, http.client.HTTPException) as error:
        raise CannotBench(f"no answer from {url}: {error or type(error).__name__}") from None
    finally:
        connection.close()
    return sum(counts) / len(counts)


def message(content: bytes) -> str:
    """What an error says, in one line."""
    try:
        text = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace")
    return " ".join(text.split())[:200]


def tokens(content: bytes) -> float:
    """Tokens of an answer's texts."""
    try:
        return float(sum(result["tokens"] for result in json.loads(content)["results"]))
    except (ValueError, KeyError, TypeError):
        return math.nan


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    connections: Sequence[int]
    seconds: float
    p99_ms: float | None = None
    wanted_rate: float | None = None
    poisson: bool = False
    rounds: int = ROUNDS

    @property
    def warm_s(self) -> float:
        """Begin of a round, which does not count."""
        return self.seconds / 4


@dataclass(frozen=True)
class Report:
    """What was found. Without a knee the server sustained no rate that was offered."""

    closed: dict[int, Figures]  # by connections
    open: dict[float, Figures]  # by requests/s offered
    knee: Figures | None
    headroom: Figures | None  # at HEADROOM of the knee
    settings: list[Setting]
    notes: list[str]


def bench(to: Target, plan: Plan, tokens_per_request: float) -> Report:
    """Closed loops, open loops around the best of them, and what follows. Raises CannotBench at errors only."""
    closed = in_turns(
        lambda n: closed_loop(to, n, plan.seconds, plan.warm_s), plan.connections, plan.rounds, "connections"
    )
    peak = max(level.rate for level in closed.values())
    if not peak:
        raise CannotBench(f"no request was answered with 200, but: {outcomes(closed.values())}")
    levels = offer(to, plan, [share * peak for share in COARSE])
    while (found := knee(list(levels.values()), plan.p99_ms)) is levels[max(levels)] and len(levels) < MAX_LEVELS:
        levels |= offer(to, plan, [HIGHER * max(levels)])  # the closed loops did not drive it to its limit
    if found:
        low, high = around(found, levels)
        levels |= offer(to, plan, [low + part * (high - low) for part in FINE])
        found = knee(list(levels.values()), plan.p99_ms)
    if not found:
        return Report(closed, levels, None, None, [], notes(list(closed.values())))
    [headroom] = offer(to, plan, [HEADROOM * found.offered]).values()
    sustained = [level for level in levels.values() if level.offered <= found.offered]
    settings = recommend(found, headroom, tokens_per_request, plan.wanted_rate)
    return Report(closed, levels, found, headroom, settings, notes([*closed.values(), *sustained]))


def offer(to: Target, plan: Plan, rates: Iterable[float]) -> dict[float, Figures]:
    """The figures of open loops at these rates."""
    return in_turns(
        lambda rate: open_loop(to, rate, plan.seconds, plan.warm_s, poisson=plan.poisson),
        rates,
        plan.rounds,
        "requests/s offered",
    )


def around(found: Figures, levels: dict[float, Figures]) -> tuple[float, float]:
    """The rate of a level, and the next that was offered; a tenth more after the last."""
    rates = sorted(levels)
    at = next(i for i, rate in enumerate(rates) if levels[rate] is found)
    return rates[at], rates[at + 1] if at + 1 < len(rates) else 1.1 * rates[at]


def in_turns(
    load: Callable[[Level], Coroutine[Any, Any, Samples]], levels: Iterable[Level], rounds: int, unit: str
) -> dict[Level, Figures]:
    """The figures of each level of load; they take turns, because machines drift, and the first place goes round."""
    order = list(levels)
    results: dict[Level, list[Figures]] = {level: [] for level in order}
    for _ in range(rounds):
        for level in order:
            results[level].append(figures(run(load(level))))
            print(f"heed bench: {level:,.0f} {unit}: {results[level][-1].rate:,.0f} requests/s", file=sys.stderr)
        order = order[1:] + order[:1]
    return {level: together(some) for level, some in results.items()}


def outcomes(levels: Iterable[Figures]) -> str:
    """429: 17, lost: 3."""
    counts: dict[str, int] = {}
    for level in levels:
        for name, answers in level.outcomes.items():
            counts[name] = counts.get(name, 0) + answers.count
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "nothing"


def notes(levels: Sequence[Figures]) -> list[str]:
    """Where the figures are those of the generator, not of the server."""
    late, busy = max(level.late_ms for level in levels), max(level.busy for level in levels)
    found = []
    if late > LATE_MS:
        found.append(f"requests were sent up to {late:,.0f} ms late (p99): no core was free, or no connection")
    if busy > BUSY:
        found.append(f"the load generator took {busy:.0%} of a core: the server may be faster than this")
    return found


def as_json(report: Report) -> dict[str, Any]:
    """Plain data; what is infinite or unknown is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(part) for key, part in value.items()}
        if isinstance(value, list):
            return [plain(part) for part in value]
        if isinstance(value, float):
            return round(value, 3) if math.isfinite(value) else None
        return value

    data: dict[str, Any] = plain(dataclasses.asdict(report))
    return data


def tables(report: Report, texts_per_request: int) -> str:
    """The report for people."""
    lines = ["closed loop: each connection waits for its answer", HEAD.format("connections")]
    lines += [line(f"{n:,}", level, texts_per_request) for n, level in report.closed.items()]
    lines += [
        "",
        "open loop: requests start at a steady rate; latency from the intended start",
        HEAD.format("offered/s"),
    ]
    lines += [line(f"{rate:,.0f}", level, texts_per_request) for rate, level in sorted(report.open.items())]
    if report.knee and report.headroom:
        lines += [
            "",
            f"knee: {report.knee.rate:,.0f} requests/s ({report.knee.rate * texts_per_request:,.0f} texts/s), "
            f"p99 {report.knee.latency_ms['p99']:,.1f} ms; at {HEADROOM:.0%} of it p50 "
            f"{report.headroom.latency_ms['p50']:,.1f} ms, p99 {report.headroom.latency_ms['p99']:,.1f} ms",
            "recommended:",
            *(f"  {setting.name} {setting.value:,}: {setting.why}" for setting in report.settings),
        ]
    else:
        lines += ["", "no knee: not even the lowest rate was sustained"]
    return "\n".join(lines + [f"note: {note}" for note in report.notes])


HEAD = "{:>12}  requests/s (lowest-highest)   texts/s   p50 ms   p90 ms   p99 ms  p99.9 ms  server p50  others"


def line(name: str, level: Figures, texts_per_request: int) -> str:
    """A row of a table."""
    latency, server = level.latency_ms, level.outcomes["200"].server_ms if "200" in level.outcomes else None
    others = outcomes([dataclasses.replace(level, outcomes={k: v for k, v in level.outcomes.items() if k != "200"})])
    spread = f"({min(level.rates):,.0f}-{max(level.rates):,.0f})"
    return (
        f"{name:>12}  {level.rate:>10,.0f} {spread:<18} {level.rate * texts_per_request:>8,.0f} {latency['p50']:>8.1f} "
        f"{latency['p90']:>8.1f} {latency['p99']:>8.1f} {latency['p99.9']:>9.1f} "
        f"{server['p50'] if server else math.nan:>11.1f}  {others if others != 'nothing' else ''}"
    ).rstrip()
