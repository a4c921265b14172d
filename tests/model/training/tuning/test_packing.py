"""Conversations are packed by best fit, cut between exchanges, and batches are a pure function of the store."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from model.training.tuning.packing import (
    Documents,
    best_fit,
    conversation_pieces,
    exchange_starts,
    fullest_rows,
    pack,
    preference_pieces,
)
from model.training.tuning.rows import DIVISORS, INPUTS, POSITIONS, SEGMENTS, TARGETS, PackedRows
from pipeline.tokenizers import ChatTokenizer
from pipeline.tokenizers.fast_tokenizer import FastTokenizer
from pipeline.tokens.store import TokenArray
from tests.pipeline.tokenizers import shapes
from tests.support.conversations import conversations
from tests.support.tuning import CHAT, messages, pairs, sums


def documents(talks: Sequence[Any], tokenizer: ChatTokenizer = CHAT) -> Documents:
    encoded = [tokenizer.encode_conversation(talk) for talk in talks]
    ids = np.array([token for row, _ in encoded for token in (*row, tokenizer.end_of_text)], "<u4")
    mask = np.array([flag for _, row in encoded for flag in (*row, False)], "u1")
    lengths = np.array([len(row) + 1 for row, _ in encoded], np.int64)
    arrays = (TokenArray((ids,)), TokenArray((mask,)))
    return Documents(*arrays, lengths, tokenizer, tokenizer.end_of_turn)


def targets(rows: PackedRows) -> list[list[int]]:
    """Return the targets with a loss of each conversation, in the order of their first tokens in the store."""
    batch = rows.read(np.arange(len(rows.rows)))
    return sorted(
        planes[TARGETS][(planes[SEGMENTS] == segment) & (planes[DIVISORS] > 0)].tolist()
        for planes in batch
        for segment in range(1, int(planes[SEGMENTS].max()) + 1)
    )


def test_best_fit_leaves_less_space_than_first_come_and_loses_nothing() -> None:
    dice = random.Random(1)
    lengths = np.array([dice.randint(1, 60) for _ in range(500)], np.int64)
    rows = best_fit(lengths, 100)
    assert sorted(item for row in rows for item in row) == list(range(500))
    assert all(lengths[row].sum() <= 100 for row in rows)
    assert len(rows) <= -(-lengths.sum() // 100) + 2


def test_best_fit_chooses_the_least_space_that_is_enough() -> None:
    """The slow definition: every row is looked at."""
    dice = random.Random(2)
    lengths = np.array([dice.randint(1, 30) for _ in range(200)], np.int64)
    expected: list[list[int]] = []  # the row that changed last is the last
    for item in sorted(range(200), key=lambda item: (-lengths[item], item)):
        fitting = [row for row in expected if lengths[row].sum() + lengths[item] <= 30]
        fullest = max((int(lengths[row].sum()) for row in fitting), default=0)
        row = next((row for row in reversed(fitting) if lengths[row].sum() == fullest), [])
        expected = [*(other for other in expected if other is not row), [*row, item]]
    assert sorted(best_fit(lengths, 30)) == sorted(expected)


def test_full_rows_are_combined_where_best_fit_leaves_space() -> None:
    lengths = np.array([60, 50, 40, 30, 20, 20, 20, 60], np.int64)
    for function in (best_fit, fullest_rows, pack):
        rows = function(lengths, 100)
        assert sorted(item for row in rows for item in row) == list(range(8))
        assert all(lengths[row].sum() <= 100 for row in rows)
    assert len(pack(lengths, 100)) == 3
    halves = np.array([45, 34, 33, 33, 22, 22, 11], np.int64)
    assert [len(function(halves, 100)) for function in (best_fit, fullest_rows, pack)] == [3, 2, 2]


def test_many_items_are_not_combined_in_large_rows_which_would_take_minutes() -> None:
    lengths = np.random.default_rng(0).integers(1600, 1700, 1000)
    assert len(fullest_rows(lengths[:100], 8192)) < len(best_fit(lengths[:100], 8192))
    assert pack(lengths, 8192) == best_fit(lengths, 8192)


def test_rows_hold_every_answer_once_and_say_where_its_conversation_began() -> None:
    talks = sums(50)
    rows = PackedRows(documents(talks), conversation_pieces(documents(talks), 96), 96)
    encoded = [CHAT.encode_conversation(talk) for talk in talks]
    assert targets(rows) == sorted(
        [token for token, flag in zip(ids, mask, strict=True) if flag] for ids, mask in encoded
    )
    for planes in rows.read(np.arange(len(rows.rows))):
        for segment in range(1, int(planes[SEGMENTS].max()) + 1):
            span = np.flatnonzero(planes[SEGMENTS] == segment)
            assert planes[POSITIONS][span].tolist() == list(range(len(span)))
            assert planes[TARGETS][span[:-1]].tolist() == planes[INPUTS][span[1:]].tolist()
        padding = planes[SEGMENTS] == 0
        assert not planes[[DIVISORS, POSITIONS]][:, padding].any()
        assert (planes[INPUTS][padding] == CHAT.end_of_text).all()


def test_batches_depend_on_store_seed_and_step_alone() -> None:
    talks = documents(sums(50))
    rows = PackedRows(talks, conversation_pieces(talks, 96), 96, 7, "key")
    batch = PackedRows(talks, conversation_pieces(talks, 96), 96, 7, "key").batch(3, 8)
    parts = [rows.batch(3, 8, first, 2) for first in range(0, 8, 2)]
    assert np.array_equal(np.concatenate(parts), batch)
    assert not np.array_equal(PackedRows(talks, rows.pieces, 96, 8, "key").batch(3, 8), batch)
    divisors = np.unique(batch[:, DIVISORS])
    assert divisors.tolist() == [0, np.count_nonzero(batch[:, DIVISORS])]


def test_every_row_comes_once_an_epoch() -> None:
    talks = documents(sums(50))
    rows = PackedRows(talks, conversation_pieces(talks, 96), 96)
    count = len(rows.rows)
    assert rows.epoch(count, 1) == 1
    for epoch in range(2):
        epoch_rows = [rows.batch(epoch * count + step, 1)[0, INPUTS].tobytes() for step in range(count)]
        assert sorted(epoch_rows) == sorted(planes.tobytes() for planes in rows.read(np.arange(count))[:, INPUTS])


def test_long_conversations_are_cut_between_exchanges() -> None:
    talk = messages(*(text for n in range(12) for text in (f"question {n}", f"answer {n}")))
    pieces = conversation_pieces(documents([talk]), 100)
    assert (pieces.cut, pieces.dropped) == (1, 0)
    ids = CHAT.encode_conversation(talk)[0]
    starts = [CHAT.decode(ids[start : start + 10]) for start in pieces.starts.tolist()]
    assert all(text.startswith("user\nquest"[:9]) for text in starts)
    assert (pieces.lengths <= 100).all()
    rows = PackedRows(documents([talk]), pieces, 100)
    answers = [CHAT.decode(row) for row in targets(rows)]
    assert sorted("".join(answers).replace("answer", " ").split()) == sorted(map(str, range(12)))


def test_a_long_answer_ends_at_the_end_of_a_character() -> None:
    """Of bytes, three for each character: wherever the block ends."""
    chat = ChatTokenizer(FastTokenizer(shapes.minimind([]).encode(), "bytes", 0))
    talk = [messages("说", "龘" * 40)]
    for block_size in range(24, 60):
        pieces = conversation_pieces(documents(talk, chat), block_size)
        (answer,) = targets(PackedRows(documents(talk, chat), pieces, block_size))
        text = chat.decode(answer)
        assert set(text) == {"龘"}
        assert (pieces.cut, pieces.dropped) == (1, 0)


def test_an_answer_out_of_reach_is_dropped_and_counted() -> None:
    talks = [messages("long " * 40, "no"), messages("short", "yes")]
    rows = PackedRows(documents(talks), conversation_pieces(documents(talks), 50), 50)
    assert "1 conversation in 1 block" in str(rows)
    assert "1 longer than a block and cut, 1 without an answer in their block dropped" in str(rows)


def test_pairs_stay_together_and_lose_the_same_exchanges() -> None:
    beginning = [text for n in range(5) for text in (f"question {n}", f"answer {n}")]
    long_pair = [messages(*beginning, "last?", answer) for answer in ("good", "bad and longer")]
    talks = [*pairs(9), *long_pair, messages("x" * 99, "a"), messages("x" * 99, "b")]
    pieces = preference_pieces(documents(talks), 120)
    assert (pieces.cut, pieces.dropped) == (1, 1)
    assert len(pieces.starts) == 2 * (9 + 1)
    rows = PackedRows(documents(talks), pieces, 120)
    batch = rows.read(np.arange(len(rows.rows)))
    for planes in batch:
        for segment in range(1, int(planes[SEGMENTS].max()), 2):
            chosen, rejected = (planes[INPUTS][planes[SEGMENTS] == index].tolist() for index in (segment, segment + 1))
            texts = CHAT.decode(chosen), CHAT.decode(rejected)
            assert texts[0].split("assistant")[0] == texts[1].split("assistant")[0]
    assert int(rows.batch(0, 1)[0, DIVISORS].max()) in map(len, rows.rows)


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_begin_at_the_turns_after_answers(seed: int) -> None:
    (talk,) = conversations(1, seed)
    ids, mask = (np.array(row) for row in CHAT.encode_conversation(talk))
    starts = exchange_starts(ids, mask, CHAT.end_of_turn)
    assert len(starts) == sum(message["role"] == "assistant" for message in talk)
    assert all(ids[start] == ids[0] for start in starts)
