"""Tokenizers, trained and cut down: ids, offsets, truncation, Chinese."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokens import Span, Text, Tokenizer, fit
from training.tokenizer import Kind, learn_tokenizer, shrink_tokenizer

TEXTS = ["the film was good", "a dull story, and cold", "菜味道很棒！送餐很及时！", "Ünïcode 🎉"] * 3
KINDS: list[Kind] = ["wordpiece", "bpe"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return learn_tokenizer(TEXTS, request.param, 400)


def test_a_row_starts_and_ends_with_special_tokens(tokenizer: Tokenizer) -> None:
    [row] = tokenizer.encode(["the film"], 64)
    assert row.ids[0] == tokenizer.token_id("[CLS]")
    assert row.ids[-1] == tokenizer.token_id("[SEP]")


def test_spans_point_into_the_callers_text(tokenizer: Tokenizer) -> None:
    for text in [*TEXTS, "cafe\u0301 🎉🦊 naïve 味道", "  two  spaces\n"]:
        first, *inner, last = tokenizer.spans(text, 64)
        assert first is last is None
        pieces = [text[span.start : span.stop] for span in inner if span]
        assert set("".join(text.split())) <= set("".join(pieces)) | {"\u0301"}
        assert all(piece == piece.lstrip() for piece in pieces if piece.strip())


def test_there_is_a_span_for_each_token_of_the_row(tokenizer: Tokenizer) -> None:
    texts: list[Text] = [
        *TEXTS,
        "good " * 100,
        ("the film", "was good"),
        ("good", "film " * 100),
        ("film " * 90, "a " * 80),
    ]
    for text in texts:
        [row] = tokenizer.encode([text], 12)
        assert len(tokenizer.spans(text, 12)) == row.tokens


def test_spans_of_a_pair_say_which_text_they_are_of(tokenizer: Tokenizer) -> None:
    pair = ("the film", "was good")
    spans = [span for span in tokenizer.spans(pair, 64) if span]
    assert "".join(pair[s.side][s.start : s.stop] for s in spans) == "thefilmwasgood"


def test_chinese_is_read_character_by_character_by_wordpiece() -> None:
    tokenizer = learn_tokenizer(TEXTS, "wordpiece", 400)
    spans = tokenizer.spans("味道很棒", 64)[1:-1]
    assert spans == [Span(i, i + 1) for i in range(4)]
    [row] = tokenizer.encode(["味道很棒"], 64)
    assert tokenizer.token_id("[UNK]") not in row.ids


def test_byte_level_bpe_knows_any_character() -> None:
    tokenizer = learn_tokenizer(["only english here"], "bpe", 300)
    [row] = tokenizer.encode(["漢字 🦊"], 64)
    assert tokenizer.token_id("[UNK]") not in row.ids


def test_a_long_text_keeps_its_last_special_token_and_says_what_was_cut(tokenizer: Tokenizer) -> None:
    [whole] = tokenizer.encode(["good " * 100], 1000)
    [row] = tokenizer.encode(["good " * 100], 10)
    assert row.tokens == 10
    assert row.truncated == whole.tokens - 10
    assert row.ids[-1] == tokenizer.token_id("[SEP]")
    assert row.ids[:9] == whole.ids[:9]


def test_a_long_pair_loses_tokens_of_its_longer_side(tokenizer: Tokenizer) -> None:
    [row] = tokenizer.encode([("good", "film " * 100)], 12)
    [short] = tokenizer.encode([("good", "film")], 12)
    assert row.tokens == 12
    assert row.types is not None
    assert row.ids[: row.types.index(1)] == short.ids[: (short.types or []).index(1)]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=2), st.integers(0, 60))
def test_fitting_shortens_the_longest_part_only_as_far_as_needed(lengths: list[int], room: int) -> None:
    kept = fit(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    assert all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))
    cut = [k for k, n in zip(kept, lengths, strict=True) if k < n]
    assert all(k >= max(kept) - 1 for k in cut)


def test_a_shrunk_tokenizer_reads_frequent_words_as_before_and_spells_the_rest() -> None:
    tokenizer = learn_tokenizer([*TEXTS, "rarely seen words"], "wordpiece", 400)
    smaller, kept = shrink_tokenizer(tokenizer, ["the film was good"] * 9 + TEXTS, tokenizer.vocab_size - 10)
    assert smaller.vocab_size == len(kept) == tokenizer.vocab_size - 10
    [before], [after] = (t.encode(["the film was good"], 64) for t in (tokenizer, smaller))
    assert [int(kept[i]) for i in after.ids] == before.ids
    [spelt] = smaller.encode(["rarely seen words"], 64)
    assert smaller.token_id("[UNK]") not in spelt.ids


def test_only_wordpiece_can_be_shrunk() -> None:
    with pytest.raises(ValueError, match="BPE"):
        shrink_tokenizer(learn_tokenizer(TEXTS, "bpe", 300), TEXTS, 280)


def test_a_shrunk_tokenizer_spells_every_printable_character_also_inside_words() -> None:
    printable = [chr(i) for i in range(33, 127)]
    tokenizer = learn_tokenizer(TEXTS + [f"{c} a{c} 1{c}" for c in printable], "wordpiece", 1000)
    smaller, _ = shrink_tokenizer(tokenizer, ["the film was good"], tokenizer.vocab_size - 5)
    unknown = smaller.token_id("[UNK]")
    for text in printable + [f"a{c}" for c in printable] + ["2023", 'a "great" 98%']:
        assert unknown not in smaller.encode([text], 64)[0].ids, text


def test_a_vocabulary_too_small_for_what_must_stay_is_refused() -> None:
    tokenizer = learn_tokenizer(TEXTS, "wordpiece", 400)
    with pytest.raises(ValueError, match="characters that must stay: 20"):
        shrink_tokenizer(tokenizer, TEXTS, 20)
