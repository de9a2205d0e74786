"""Tokenizers, trained and cut down: ids, offsets, truncation, windows, Chinese."""

from __future__ import annotations

import resource
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokens import OVERLAP, Span, Text, Tokenizer, Window, fit, tokens_of, window_starts
from training.tokenizer import Kind, learn_tokenizer, shrink_tokenizer

TEXTS = ["the film was good", "a dull story, and cold", "菜味道很棒！送餐很及时！", "Ünïcode 🎉"] * 3
KINDS: list[Kind] = ["wordpiece", "bpe"]
TOKENIZERS = {kind: learn_tokenizer(TEXTS, kind, 400) for kind in KINDS}
PIECES = ["good ", "film", "  ", "菜味道", "Ünï", "cafe\u0301 ", "🎉", "👩‍👩‍👧 ", "x\u00ad", "\t", "unbelievable, "]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


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


def test_a_pair_of_two_very_long_texts_is_cut_in_the_memory_of_its_texts(tokenizer: Tokenizer) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [row] = tokenizer.encode([("a " * 8_000, "b " * 8_000)], 64)
    assert (row.tokens, row.types) == (64, [0] * 32 + [1] * 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 200_000  # KiB


@given(st.lists(st.integers(0, 50), min_size=1, max_size=2), st.integers(0, 60))
def test_fitting_shortens_the_longest_part_only_as_far_as_needed(lengths: list[int], room: int) -> None:
    kept = fit(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    assert all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))
    cut = [k for k, n in zip(kept, lengths, strict=True) if k < n]
    assert all(k >= max(kept) - 1 for k in cut)


@given(st.integers(1, 60), st.integers(1, 300))
def test_windows_read_every_token_and_share_a_quarter_with_the_next(width: int, more: int) -> None:
    starts = window_starts(width + more, width)
    assert (starts[0], starts[-1]) == (0, more)
    steps = {b - a for a, b in pairwise(starts)}
    assert 1 <= min(steps) <= max(steps) <= width - int(width * OVERLAP)
    assert max(steps) - min(steps) <= 1


@given(st.sampled_from(KINDS), st.lists(st.sampled_from(PIECES), min_size=1, max_size=40), st.integers(3, 24))
def test_the_windows_of_a_text_are_full_rows_that_hold_all_its_tokens(
    kind: Kind, pieces: list[str], limit: int
) -> None:
    tokenizer = TOKENIZERS[kind]
    [whole] = tokenizer.encode(["".join(pieces)], 10_000)
    [windows] = tokenizer.encode_windows(["".join(pieces)], limit)
    assert tokens_of(windows) == whole.tokens
    if whole.tokens <= limit:
        assert windows == [whole]
        return
    for row in windows:
        assert isinstance(row, Window)
        assert row.ids == [whole.ids[0], *whole.ids[1:-1][row.first : row.first + limit - 2], whole.ids[-1]]
        assert (row.tokens, row.types, row.truncated) == (limit, None, 0)


@given(st.sampled_from(KINDS), st.lists(st.sampled_from(PIECES), min_size=1, max_size=40), st.integers(6, 24))
def test_windows_know_which_characters_they_read(kind: Kind, pieces: list[str], limit: int) -> None:
    text = "".join(pieces)
    [rows] = TOKENIZERS[kind].encode_windows([text], limit)
    windows = [row for row in rows if isinstance(row, Window)]
    assert all(after.start < before.end for before, after in pairwise(windows))
    if windows:
        beside = text[: windows[0].start] + text[windows[-1].end :]
        assert beside.strip(" \t\u00ad\u0301\u200d") == ""
    for window in windows:  # the characters alone give these tokens again, but for words that an edge tears
        [alone] = TOKENIZERS[kind].encode([text[window.start : window.end]], 10_000)
        assert set(window.ids[4:-4]) <= set(alone.ids)


def test_a_pair_moves_along_its_longer_side_and_keeps_the_other_whole(tokenizer: Tokenizer) -> None:
    short, long = "a dull story", "film " * 50 + "good"
    n = tokenizer.encode([short], 1000)[0].tokens - 1  # with the special token before or after it
    for side, pair, kept in ((1, (short, long), slice(n)), (0, (long, short), slice(-n, None))):
        [whole], [windows] = tokenizer.encode([pair], 1000), tokenizer.encode_windows([pair], 24)
        assert tokens_of(windows) == whole.tokens
        assert all(isinstance(window, Window) and window.side == side for window in windows)
        assert all(window.ids[kept] == whole.ids[kept] for window in windows)
        assert isinstance(last := windows[-1], Window)
        assert long[last.start : last.end].endswith("good")


def test_a_pair_whose_shorter_side_takes_over_half_of_the_room_is_cut(tokenizer: Tokenizer) -> None:
    pair = ("good " * 30, "film " * 40)
    assert tokenizer.encode_windows([pair], 24) == [tokenizer.encode([pair], 24)]


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
