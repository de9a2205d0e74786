"""Do explanations name the tokens that matter? Comprehensiveness and sufficiency, by method of ranking.

    python benchmarks/faithfulness.py BUNDLE DATA [--limit N] [--json]

DeYoung et al. 2020 (ERASER), https://arxiv.org/abs/1911.03429, section 4.2: of the probability of the predicted label,
comprehensiveness is what is lost without the top-scored 1, 5, 10, 20 and 50 % of tokens (rounded up), sufficiency
what is lost when only they stay; the mean over the five. High comprehensiveness and low sufficiency are good.
Tokens go in two ways: deleted from the row, or replaced by the token that stands for none ([MASK]); special
tokens stay, and are no part of the percentage. Random is the mean over SEEDS rankings.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from model.attribution import masked
from model.bundle import load_bundle
from model.explain import attention_weights, batch_for, explain
from model.forward import forward_rows
from model.records import read_records
from model.scores import SINGLE, probabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model.bundle import Bundle
    from model.tokens import Row

    Ranking = Callable[[Row, Row, int], list[float]]  # row, baseline, label -> a score per token

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
SEEDS = 3
WAYS = ("delete", "mask")
FIGURES = ("comprehensiveness", "sufficiency")
Figures = dict[str, float]


class Judge:
    """Probabilities of a bundle's texts with tokens taken away, each distinct row computed once."""

    def __init__(self, bundle: Bundle, texts: Sequence[str]) -> None:
        self.bundle, self._known = bundle, dict[tuple[int, ...], list[float]]()
        self.rows = bundle.tokenizer.encode(texts, bundle.max_tokens)
        spans = [bundle.tokenizer.spans(text, bundle.max_tokens) for text in texts]
        self.baselines = [masked(row, s, bundle.tokenizer) for row, s in zip(self.rows, spans, strict=True)]
        self.real = [[i for i, span in enumerate(s) if span is not None] for s in spans]
        self.whole = self._probabilities(self.rows)
        self.labels = [p.index(max(p)) for p in self.whole]

    def figures(self, scores: Sequence[Sequence[float]]) -> Figures:
        """Mean comprehensiveness and sufficiency of a ranking of all texts, both ways of taking tokens away."""
        figures = {}
        for way in WAYS:
            for name in FIGURES:
                drops_top = name == "comprehensiveness"
                asked = [(i, share) for i in range(len(scores)) for share in SHARES]
                left = self._probabilities([self._without(i, scores[i], share, way, drops_top) for i, share in asked])
                before = [self.whole[i][self.labels[i]] for i, _ in asked]
                after = [p[self.labels[i]] for (i, _), p in zip(asked, left, strict=True)]
                figures[f"{name}, {way}"] = fmean(before) - fmean(after)
        return figures

    def _without(self, i: int, scores: Sequence[float], share: float, way: str, drops_top: bool) -> Row:
        """Row i without its top share of real tokens, or without the others."""
        ranked = sorted(self.real[i], key=lambda at: -scores[at])
        n = math.ceil(share * len(ranked))
        gone = set(ranked[:n] if drops_top else ranked[n:])
        row, blanks = self.rows[i], self.baselines[i].ids
        if way == "mask":
            return replace(row, ids=[blanks[at] if at in gone else token for at, token in enumerate(row.ids)])
        return replace(row, ids=[token for at, token in enumerate(row.ids) if at not in gone], types=None)

    def _probabilities(self, rows: Sequence[Row]) -> list[list[float]]:
        new = {tuple(row.ids): row for row in rows if tuple(row.ids) not in self._known}
        if new:
            logits = forward_rows(self.bundle.classifier, list(new.values()))
            self._known |= zip(new, probabilities(logits, SINGLE).tolist(), strict=True)
        return [self._known[tuple(row.ids)] for row in rows]


def rankings(bundle: Bundle) -> dict[str, Ranking]:
    """The ways to score tokens that are compared."""
    classifier = bundle.classifier

    def gradient_times_input(row: Row, baseline: Row, label: int) -> list[float]:
        batch = batch_for(classifier, [row])
        x = classifier.encoder.embeddings(batch).detach().requires_grad_()
        [logits] = classifier.logits(x, batch)
        margin = logits[label] - torch.cat((logits[:label], logits[label + 1 :])).logsumexp(0)
        [gradient] = torch.autograd.grad(margin, x)
        scores: list[float] = (gradient * x).sum(1).tolist()
        return scores

    def attention(row: Row, baseline: Row, label: int) -> list[float]:
        scores: list[float] = attention_weights(classifier, row)[-1].mean(0)[0].tolist()
        return scores

    def rollout(row: Row, baseline: Row, label: int) -> list[float]:
        """Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928."""
        layers = attention_weights(classifier, row).mean(1)  # (layers, L, L)
        steps = (layers + torch.eye(len(row.ids))) / 2
        scores: list[float] = torch.linalg.multi_dot(list(steps.flip(0)))[0].tolist()
        return scores

    return {
        "integrated gradients": lambda row, baseline, label: explain(classifier, row, baseline, label).scores,
        "gradient x input": gradient_times_input,
        "attention, last layer": attention,
        "attention rollout": rollout,
    }


def compare(bundle: Bundle, texts: Sequence[str]) -> dict[str, Figures]:
    """Figures by ranking, random first."""
    judge = Judge(bundle, texts)
    rng = random.Random(0)
    chance = [judge.figures([[rng.random() for _ in row.ids] for row in judge.rows]) for _ in range(SEEDS)]
    table = {"random": {name: fmean(figures[name] for figures in chance) for name in chance[0]}}
    for name, ranking in rankings(bundle).items():
        table[name] = judge.figures(list(map(ranking, judge.rows, judge.baselines, judge.labels)))
    return table


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, help="only so many texts, the first of the file")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    bundle.classifier.requires_grad_(False)
    texts = [str(fields["text"]) for _, fields in read_records(args.data) if isinstance(fields, dict)][: args.limit]
    table = compare(bundle, texts)
    if args.json:
        print(json.dumps({"texts": len(texts), "figures": table}))
        return
    print("| ranked by | comprehensiveness, delete | over random | mask | over random | sufficiency, delete | mask |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = table["random"]
    for name, figures in table.items():
        c, cm, s, sm = (
            figures[f"{f}, {way}"] for f in ("comprehensiveness", "sufficiency") for way in ("delete", "mask")
        )
        over, over_m = c / base["comprehensiveness, delete"], cm / base["comprehensiveness, mask"]
        print(f"| {name} | {c:.3f} | {over:.1f} | {cm:.3f} | {over_m:.1f} | {s:.3f} | {sm:.3f} |")


if __name__ == "__main__":
    main()
