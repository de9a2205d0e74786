"""Whether a candidate takes the place of the model in production: what both say of the same rows -> a decision.

Two ways lead to promotion, each tested at half of `level`, so that together they let through at most that share of
candidates that are no better: to be better on the frozen hold-out, or to be better on the newest labels and on the
hold-out not worse by more than `margin`. Either way no label, no slice, not the calibration, the size nor the time of
an answer may be worse than its bound. Pure functions; called by training/retrain.py.

Letters: N rows, K kinds of rows, C labels of production, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binom, norm

from training.evaluate import RESAMPLES, f1_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from training.answers import Answers

    Mask = NDArray[np.bool_]

LEARNED = 0.75  # of the accuracy on the hold-out, that a model has at least on labels that it could learn
CHUNK_CELLS = 50_000_000  # numbers of resampled outcomes that are in memory at a time


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a candidate may be worse in, and how sure its gain has to be."""

    level: float = 0.05  # of candidates no better than production this share is promoted, at most
    margin: float = 0.03  # of accuracy (multi-label: macro-F1) on the hold-out, where the newest labels gain
    label_margin: float = 0.05  # of a label's F1, beyond what chance explains
    slice_margin: float = 0.05  # of a slice's accuracy, beyond what chance explains
    ece_margin: float = 0.02  # of calibration error on the hold-out, beyond what chance explains
    size_ratio: float = 1.25  # of bytes to production's
    time_ratio: float = 1.25  # of a text's time to production's

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level is not in (0, 1): {self.level}")
        for name in ("margin", "label_margin", "slice_margin", "ece_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is not in [0, 1): {getattr(self, name)}")
        for name in ("size_ratio", "time_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is not a positive number: {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at: both figures, and whether the candidate's is within its bound."""

    name: str
    production: float
    candidate: float
    ok: bool
    bound: str  # in words, with its value


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A figure on some rows, candidate - production."""

    rows: int
    production: float
    candidate: float
    low: float  # the difference is above it but for `level` of all cases
    chance: float  # probability of such a gain, or a greater one, where there is none
    loss_chance: float  # and of such a loss

    @property
    def difference(self) -> float:
        """What the candidate has more."""
        return self.candidate - self.production


@dataclass(frozen=True, kw_only=True)
class Decision:
    """promoted, and why: the checks that failed, or the way that was open."""

    promoted: bool
    why: str
    hold_out: Gain
    newest: Gain | None
    checks: list[Check]
    harmed: bool  # the hold-out, a label or a slice is worse beyond chance, or the newest labels cannot be learned


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model takes."""

    bytes: int
    text_ms: float  # of one text alone, median


def decide(
    hold_out: tuple[Answers, Answers],
    newest: tuple[Answers, Answers] | None,
    ece: tuple[float, float, float],
    cost: tuple[Cost, Cost],
    bounds: Bounds,
    outside: tuple[Mask, Mask] | None = None,
) -> Decision:
    """Of each pair the first is production's, the second the candidate's; `ece` is both calibration errors on the
    hold-out, and the standard error of their difference.

    newest is None where no new label is held out: then only the hold-out counts, at the whole level. `outside` is where
    each abstained, of rows of the hold-out that are of no class (M,).
    """
    ways = 1 if newest is None else 2
    on_hold_out = gain(*hold_out, bounds.level)
    on_newest = newest and gain(*newest, bounds.level)
    answered = [*label_checks(*hold_out, bounds), *slice_checks(*hold_out, bounds)]
    if newest is not None:  # a label that is newer than the hold-out is only there
        of_newest = [*label_checks(*newest, bounds), *slice_checks(*newest, bounds)]
        answered += [replace(check, name=f"{check.name} on the newest labels") for check in of_newest]
    checks = list(answered)
    if outside is not None:  # says nothing of the new rows: a candidate without calibration never abstains
        checks.append(_check_share("abstained on what is of no class", *outside, bounds.slice_margin, bounds.level))
    checks += [
        _within("calibration error", *ece[:2], ece[0] + bounds.ece_margin + float(norm.isf(bounds.level)) * ece[2]),
        _within("bytes", cost[0].bytes, cost[1].bytes, cost[0].bytes * bounds.size_ratio),
        _within("ms of a text", cost[0].text_ms, cost[1].text_ms, cost[0].text_ms * bounds.time_ratio),
    ]
    promoted, why = verdict(on_hold_out, on_newest, [check for check in checks if not check.ok], bounds)
    harmed = not all(check.ok for check in answered) or on_hold_out.loss_chance <= bounds.level / ways
    if on_newest is not None and not promoted and is_unlearned(on_hold_out, on_newest, bounds):
        harmed = True
        why = f"a model that was trained on such labels is no more often right on them: {on_newest.candidate:.1%}"
    return Decision(promoted=promoted, why=why, hold_out=on_hold_out, newest=on_newest, checks=checks, harmed=harmed)


def is_unlearned(hold_out: Gain, newest: Gain, bounds: Bounds) -> bool:
    """Whether the newest labels look wrong: hard for a model that was trained on their like, no easier than before."""
    return newest.candidate < LEARNED * hold_out.candidate and newest.chance > bounds.level


def verdict(hold_out: Gain, newest: Gain | None, failed: Sequence[Check], bounds: Bounds) -> tuple[bool, str]:
    """Whether to promote, and why in a sentence that ends with the figure."""
    enough = bounds.level / (1 if newest is None else 2)
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if failed[1:] else ""
        worse = f"{first.production:.4g} to {first.candidate:.4g}"
        return False, f"{first.name} is worse than its bound, {first.bound}{more}: {worse}"
    if hold_out.chance <= enough:
        return True, f"better on the {hold_out.rows:,} rows of the hold-out: {hold_out.difference:+.4f}"
    if newest is None or newest.chance > enough:
        where = "the hold-out" if newest is None else "the hold-out or the newest labels"
        return False, f"not better on {where} beyond chance: {hold_out.difference:+.4f}"
    if hold_out.low < -bounds.margin:
        lost = f"{hold_out.difference:+.4f}, at worst {hold_out.low:+.4f}"
        where = f"the {hold_out.rows:,} rows of the hold-out"
        return False, f"better on the newest labels, but by {where} it may lose over {bounds.margin:g}: {lost}"
    return True, f"better on the {newest.rows:,} newest labels, and no worse on the hold-out: {newest.difference:+.4f}"


def gain(production: Answers, candidate: Answers, level: float) -> Gain:
    """Accuracy, by McNemar's exact test; of independent labels macro-F1, by a paired permutation test.

    McNemar 1947, one-sided: of the rows that only one of the two has right, is half the candidate's? Permutation: how
    often is the difference as great where a coin decides which of the two answers to a row is the candidate's?
    """
    n = len(production.right)
    if production.is_multi:
        before, after = (float(f1_of(answers).mean()) for answers in (production, candidate))
        swapped = changes(production, candidate, swap=True).mean(axis=1)
        return Gain(
            rows=n,
            production=before,
            candidate=after,
            low=float(np.quantile(changes(production, candidate).mean(axis=1), level)),
            chance=(1 + int((swapped >= after - before).sum())) / (1 + len(swapped)),
            loss_chance=(1 + int((swapped <= after - before).sum())) / (1 + len(swapped)),
        )
    won = int((candidate.right & ~production.right).sum())
    lost = int((production.right & ~candidate.right).sum())
    difference = (won - lost) / n
    return Gain(
        rows=n,
        production=float(production.right.mean()),
        candidate=float(candidate.right.mean()),
        low=difference - float(norm.isf(level)) * paired_error(won, lost, n),
        chance=float(binom.sf(won - 1, won + lost, 0.5)),
        loss_chance=float(binom.sf(lost - 1, won + lost, 0.5)),
    )


def paired_error(won: int, lost: int, n: int) -> float:
    """Standard error of (won - lost) / n, as if one row more had been won and one lost: it is not 0 of few rows."""
    won, lost, n = won + 1, lost + 1, n + 2
    return float(np.sqrt(max(won + lost - (won - lost) ** 2 / n, 0.0)) / n)


def label_checks(production: Answers, candidate: Answers, bounds: Bounds) -> list[Check]:
    """The F1 of each label may fall by label_margin, and by what chance explains: its rows are few or many."""
    before, after = f1_of(production), f1_of(candidate)
    by_chance = changes(production, candidate).std(axis=0) * norm.isf(bounds.level / len(before))
    return [
        _check_fall(f"F1 of {label}", before[i], after[i], bounds.label_margin + float(by_chance[i]))
        for i, label in enumerate(production.labels)
    ]


def slice_checks(production: Answers, candidate: Answers, bounds: Bounds) -> list[Check]:
    """The same of the accuracy of each value of the columns that the rows are sliced by."""
    groups = sliced(production)
    level = bounds.level / max(len(groups), 1)
    return [
        _check_share(f"accuracy of {name}", production.right[rows], candidate.right[rows], bounds.slice_margin, level)
        for name, rows in groups.items()
    ]


def sliced(answers: Answers) -> dict[str, Mask]:
    """The rows (N,) of each value of each column, by "column=value"."""
    dataset = answers.dataset
    return {
        f"{column}={value}": np.array([example.slices[i] == value for example in dataset.examples])
        for i, column in enumerate(dataset.slices)
        for value in sorted({example.slices[i] for example in dataset.examples})
    }


def f1_of(answers: Answers) -> NDArray[np.float64]:
    """F1 of each label (C,)."""
    true, given = answers.true, answers.given
    return f1_scores((true & given).sum(axis=0), (given & ~true).sum(axis=0), (true & ~given).sum(axis=0))


def changes(production: Answers, candidate: Answers, *, swap: bool = False) -> NDArray[np.float64]:
    """Candidate's F1 less production's of each label (R, C): on resampled rows, or with some answers swapped."""
    parts = [part for a in (production, candidate) for part in (a.true & a.given, a.given & ~a.true, a.true & ~a.given)]
    kinds, rows_of = np.unique(np.concatenate(parts, axis=1), axis=0, return_counts=True)  # (K, 2 * 3 * C), (K,)
    kinds = kinds.astype(np.float32)
    other = np.roll(kinds, kinds.shape[1] // 2, axis=1)  # as if each had given the other's answer
    n, rng = rows_of.sum(), np.random.default_rng(0)

    def drawn(size: int) -> NDArray[np.float32]:
        if swap:
            taken = rng.binomial(rows_of, 0.5, size=(size, len(rows_of))).astype(np.float32)
            return np.asarray(taken @ other + (rows_of - taken).astype(np.float32) @ kinds)
        return np.asarray(rng.multinomial(n, rows_of / n, size=size).astype(np.float32) @ kinds)

    counts = np.concatenate([drawn(size) for size in _chunks(RESAMPLES, max(1, CHUNK_CELLS // len(kinds)))])
    before, after = (
        f1_scores(*part.astype(np.int64).swapaxes(0, 1)) for part in counts.reshape(RESAMPLES, 2, 3, -1).swapaxes(0, 1)
    )
    return after - before


def _chunks(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _check_share(name: str, before: Mask, after: Mask, margin: float, level: float) -> Check:
    """A share of rows (N,) that may fall by the margin, and by what chance explains."""
    error = paired_error(int((after & ~before).sum()), int((before & ~after).sum()), len(before))
    allowed = margin + float(norm.isf(level)) * error
    return _check_fall(name, float(before.mean()), float(after.mean()), allowed)


def _check_fall(name: str, before: float, after: float, allowed: float) -> Check:
    ok = bool(before - after <= allowed)
    return Check(name=name, production=float(before), candidate=float(after), ok=ok, bound=f"a fall of {allowed:.3f}")


def _within(name: str, before: float, after: float, most: float) -> Check:
    return Check(name=name, production=before, candidate=after, ok=bool(after <= most), bound=f"at most {most:.4g}")
