"""What is wrong with labelled data, before anything is trained on it: check() -> Health, a table and report/data.json.

Lines of files, labels and figures only: no text leaves here. Called by training/train.py and training/commands.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model.scores import SINGLE
from training.data import DataError
from training.duplicates import copies, keys_of, near, shared
from training.label_noise import WORD, suspects
from training.shift import length_bins, script, shift

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from training.data import Dataset

    Keys = NDArray[np.int64]

NO_LABEL = "no label"
FEW_ROWS = 10  # of a label: fewer are hardly learned from
MANY_NEAR = 0.05  # share of held-out rows with a near copy in training from which figures on them are not to be trusted
SAMPLE_ROWS = 2000  # looked at for lengths in words and for scripts
MAX_LISTED = 1000  # rows of a finding in the report
MAX_NAMED = 3  # in its line of the table


@dataclass(frozen=True)
class Finding:
    """One thing found: what in a line, what to do, and the rows by line of their file. Serious: --strict refuses it."""

    kind: str
    summary: str
    advice: str
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    serious: bool = False


@dataclass(frozen=True)
class Health:
    """What was found in the parts of the data; files says which they are."""

    files: dict[str, str]
    findings: list[Finding]

    def table(self) -> str:
        """A line for each finding, ! before the serious ones."""
        if not self.findings:
            return "data: nothing found"
        return "\n".join(f"data: {'!' if f.serious else ' '} {f.kind:<13} {f.summary}" for f in self.findings)

    def to_json(self) -> str:
        """Everything, with the rows."""
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return json.dumps({"files": self.files, "findings": findings}, indent=1, ensure_ascii=False) + "\n"

    def refuse(self) -> None:
        """Raise DataError naming the first serious finding, what to do, and how many others there are."""
        serious = [finding for finding in self.findings if finding.serious]
        if not serious:
            return
        more = f"; and {len(serious) - 1} more serious findings" if serious[1:] else ""
        first = serious[0]
        raise DataError(
            f"--strict refuses {first.kind}: {first.summary}: {first.advice}{more}; --check-only --json lists all rows"
        )


def check(parts: dict[str, Dataset], max_tokens: int) -> Health:
    """Look at train and at what is held out: {"train": ..., "dev": ..., "test": ...}, the last optional."""
    train = parts["train"]
    keys = {name: keys_of(part.texts) for name, part in parts.items()}
    held_out = [name for name in parts if name != "train"]
    findings = [
        *leaks(parts, keys),
        *same_texts(train, keys["train"]),
        *doubtful_labels(train, keys["train"]),
        *too_long(train, max_tokens),
        *few_rows(parts),
        *(finding for name in held_out for finding in shifts(name, train, parts[name])),
    ]
    return Health({name: part.name for name, part in parts.items()}, findings)


def leaks(parts: dict[str, Dataset], keys: dict[str, Keys]) -> Iterator[Finding]:
    """Rows of one part that are in an earlier one too, or nearly."""
    for one, other in itertools.combinations(parts, 2):
        seen, held_out = parts[one].examples, parts[other].examples
        exact = shared(keys[one], keys[other])
        unseen = np.setdiff1d(np.arange(len(held_out)), [row for row, _ in exact])
        nearly = near(parts[one].texts, [held_out[row].text for row in unseen])
        pairs = [(row, at, 1.0) for row, at in exact] + [(int(unseen[row]), at, like) for row, at, like in nearly]
        if pairs:
            yield Finding(
                "leak",
                f"{len(pairs):,} of {len(held_out):,} rows of {other} are {_in(one, len(exact), len(nearly))} "
                f"({other} {_lines([held_out[row].line for row, _, _ in pairs])})",
                f"take them out of {one} or of {other}, whose figures flatter",
                [
                    {f"{other}_line": held_out[row].line, f"{one}_line": seen[at].line, "similarity": round(like, 3)}
                    for row, at, like in pairs[:MAX_LISTED]
                ],
                serious=bool(exact) or len(nearly) > MANY_NEAR * len(held_out),
            )


def _in(part: str, exact: int, nearly: int) -> str:
    return (
        f"in {part} too, {nearly:,} of them nearly"
        if exact and nearly
        else f"{'' if exact else 'nearly '}in {part} too"
    )


def same_texts(train: Dataset, keys: Keys) -> Iterator[Finding]:
    """Texts that are there several times: with one label, and with several."""
    groups = [[train.examples[row] for row in group] for group in copies(keys)]
    alike = [group for group in groups if len({frozenset(e.labels) for e in group}) == 1]
    unlike = [group for group in groups if len({frozenset(e.labels) for e in group}) > 1]
    if unlike:
        rows = sum(map(len, unlike))
        yield Finding(
            "contradiction",
            f"{rows:,} rows of train have the text of another and another label "
            f"({_lines([group[0].line for group in unlike])})",
            "make their labels agree, or leave them out",
            [{"lines": [e.line for e in g], "labels": [list(e.labels) for e in g]} for g in unlike[:MAX_LISTED]],
            serious=train.problem_type == SINGLE,  # several labels are seldom listed twice in full
        )
    if alike:
        rows = sum(len(group) - 1 for group in alike)
        yield Finding(
            "duplicate",
            f"{_share(rows, len(keys))} rows of train repeat another ({_lines([group[1].line for group in alike])})",
            "leave them out, unless they shall count more",
            [{"lines": [e.line for e in group]} for group in alike[:MAX_LISTED]],
        )


def doubtful_labels(train: Dataset, keys: Keys) -> Iterator[Finding]:
    """Labels that a linear model contradicts; not looked for where a text may have several."""
    if train.problem_type != SINGLE:
        return
    _, once = np.unique(keys, return_index=True)
    found = suspects(train.texts, [example.labels[0] for example in train.examples], np.sort(once))
    if found is None or not found.rows:
        return
    part = "" if found.rows_read == len(once) else f" among {found.rows_read:,} rows read"
    in_all = "" if found.estimate is None else f", perhaps up to {found.estimate:,} wrong in all"
    yield Finding(
        "label noise",
        f"{len(found.rows):,} labels{part} doubted by a linear model that is {found.accuracy:.0%} right{in_all} "
        f"(worst first: {_lines([train.examples[row].line for row, _, _ in found.rows])})",
        "look at these rows",
        [
            {
                "line": train.examples[row].line,
                "label": train.examples[row].labels[0],
                "rather": rather,
                "margin": round(margin, 3),
            }
            for row, rather, margin in found.rows[:MAX_LISTED]
        ],
    )


def too_long(train: Dataset, max_tokens: int) -> Iterator[Finding]:
    """Texts that will be cut. A word is at least a token."""
    sample = _sample(train)
    long = sum(len(text) > max_tokens and len(WORD.findall(text)) > max_tokens for text in map(_whole, sample))
    if long:
        yield Finding(
            "long",
            f"at least {long / len(sample):.1%} of rows of train are over max_tokens={max_tokens} and will be cut",
            "read more of them with --set max_tokens=",
        )


def few_rows(parts: dict[str, Dataset]) -> Iterator[Finding]:
    """Labels that are hardly learned, or never measured."""
    counts = {name: Counter(label for e in part.examples for label in e.labels) for name, part in parts.items()}
    few = sorted(label for label, count in counts["train"].items() if count < FEW_ROWS)
    if few:
        yield Finding(
            "few rows",
            f"{len(few):,} of {len(counts['train']):,} labels have under {FEW_ROWS} rows in train ({_named(few)})",
            "add rows, or join labels",
            [{"label": label, "rows": counts["train"][label]} for label in few[:MAX_LISTED]],
        )
    unmeasured = sorted(counts["train"].keys() - counts["dev"].keys())
    if unmeasured:
        yield Finding(
            "unmeasured",
            f"{len(unmeasured):,} of {len(counts['train']):,} labels have no row in dev ({_named(unmeasured)})",
            "add rows to dev",
            [{"label": label} for label in unmeasured[:MAX_LISTED]],
        )


def shifts(name: str, train: Dataset, part: Dataset) -> Iterator[Finding]:
    """Where held-out rows are unlike those of train: in script, length or labels."""
    advice = f"take train and {name} from the same source"
    before, after = ([script(text) for text in _sample(dataset)] for dataset in (train, part))
    index = shift(before, after)
    if index is not None:
        yield Finding(
            "script", f"{name} is in other scripts than train ({_moved(before, after, index)})", advice, serious=True
        )
    lengths, others = (np.array([len(_whole(t)) for t in dataset.texts]) for dataset in (train, part))
    index = shift(length_bins(lengths, lengths), length_bins(lengths, others))
    if index is not None:
        medians = f"median {np.median(lengths):.0f} characters, {name} {np.median(others):.0f}"
        yield Finding(
            "length", f"rows of {name} are of other lengths than train's ({medians}; PSI {index:.2f})", advice
        )
    before, after = (
        [label for e in dataset.examples for label in e.labels or (NO_LABEL,)] for dataset in (train, part)
    )
    index = shift(before, after)
    if index is not None:
        yield Finding("label shares", f"{name} has other shares of labels ({_moved(before, after, index)})", advice)


def _moved(before: Sequence[str], after: Sequence[str], index: float) -> str:
    """The category whose share differs most."""
    old, new = Counter(before), Counter(after)
    most = max(old | new, key=lambda c: abs(old[c] / len(before) - new[c] / len(after)))
    return f"{_named([most])} {old[most] / len(before):.1%}, then {new[most] / len(after):.1%}; PSI {index:.2f}"


def _sample(dataset: Dataset) -> list[Any]:
    """Texts, a few thousand at most, the same for the same data."""
    rows = np.random.default_rng(0).permutation(len(dataset.examples))[:SAMPLE_ROWS]
    return [dataset.examples[row].text for row in rows]


def _whole(text: Any) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})"


def _lines(lines: Sequence[int]) -> str:
    more = ", …" if len(lines) > MAX_NAMED else ""
    return f"line{'s' if lines[1:] else ''} {', '.join(map(str, lines[:MAX_NAMED]))}{more}"


def _named(labels: Sequence[str]) -> str:
    more = ", …" if len(labels) > MAX_NAMED else ""
    return ", ".join(label[:40] for label in labels[:MAX_NAMED]) + more
