"""Token vectors from the company that tokens keep."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from training.cooccurrence import near, start_from_text

ANIMALS, TOOLS, AROUND_ANIMALS, AROUND_TOOLS = range(5), range(5, 10), range(10, 20), range(20, 30)
NEVER = 30


def texts(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Five tokens a text: an animal or a tool in the middle, around it what is said of such."""
    rng = random.Random(0)
    rows = []
    for i in range(count):
        word, around = (ANIMALS, AROUND_ANIMALS) if i % 2 else (TOOLS, AROUND_TOOLS)
        rows.append([*rng.choices(around, k=2), rng.choice(word), *rng.choices(around, k=2)])
    return np.array(rows).ravel(), np.repeat(np.arange(count), 5)


def test_tokens_that_keep_the_same_company_start_near_each_other() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(31, 16)
    nn.init.trunc_normal_(embedding.weight, std=0.02)
    before = embedding.weight.detach().clone()
    start_from_text(embedding, *texts(500))
    likeness = torch.corrcoef(embedding.weight.detach())
    same = likeness[:5, :5][~torch.eye(5, dtype=torch.bool)]
    assert same.mean() > likeness[:5, 5:10].mean() + 0.5
    assert torch.equal(embedding.weight[NEVER], before[NEVER])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tokens", [[], [5], [5, 6, 7]])
def test_texts_in_which_nothing_is_near_anything_do_no_harm(tokens: list[int]) -> None:
    embedding = nn.Embedding(31, 16)
    start_from_text(embedding, np.array(tokens, np.int64), np.arange(len(tokens)))
    assert embedding.weight.isfinite().all()


def test_a_text_knows_nothing_of_the_one_before_it() -> None:
    counts = near(np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1]), 4).toarray()
    assert counts[0, 1] == counts[1, 0] == counts[2, 3] == 1
    assert counts[1, 2] == counts[0, 3] == 0


def test_the_nearer_of_two_tokens_counts_more() -> None:
    counts = near(np.arange(7), np.zeros(7, int), 7).toarray()
    assert counts[0].tolist() == pytest.approx([0, 1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0])
