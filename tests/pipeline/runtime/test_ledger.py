"""The ledger accounts for all input, or nothing is published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InternalError, TooManyRejects
from pipeline.runtime.ledger import Ledger, LedgerTally

REASONS = st.sampled_from(["bad-json", "bad-record", "blank-line", "duplicate"])
DROPPED = st.dictionaries(REASONS, st.integers(1, 10_000))


@st.composite
def tallies(draw: st.DrawFn) -> LedgerTally:
    """Draw a tally that adds up."""
    out, dropped = draw(st.integers(0, 10_000)), draw(DROPPED)
    return LedgerTally(out + sum(dropped.values()), out, dropped)


LEDGERS = st.builds(Ledger, tallies(), tallies())


def tally_of(ledger: Ledger, name: str) -> LedgerTally:
    return {"documents": ledger.documents, "characters": ledger.characters}[name]


def test_empty_ledger_adds_up() -> None:
    empty = {"in": 0, "out": 0, "dropped": {}}
    assert Ledger().close(max_bad=0) == {"documents": empty, "characters": empty}


def test_closed_ledger_is_a_dict_with_sorted_reasons() -> None:
    ledger = Ledger(LedgerTally(10, 7, {"duplicate": 2, "blank-line": 1}), LedgerTally(100, 100))
    assert ledger.close() == {
        "documents": {"in": 10, "out": 7, "dropped": {"blank-line": 1, "duplicate": 2}},
        "characters": {"in": 100, "out": 100, "dropped": {}},
    }
    assert list(ledger.close()["documents"]["dropped"]) == ["blank-line", "duplicate"]


@given(ledger=LEDGERS, error=st.integers(-5, 5).filter(bool), name=st.sampled_from(["documents", "characters"]))
def test_wrong_sum_raises_internal_error(ledger: Ledger, error: int, name: str) -> None:
    tally_of(ledger, name).out += error
    with pytest.raises(InternalError, match=f"ledger of {name} does not add up") as caught:
        ledger.close(max_bad=1)
    assert caught.value.exit_code == 70


@pytest.mark.parametrize(
    ("bad", "max_bad", "refused"),
    [(0, 0.0, False), (1, 0.0, True), (1, 0.001, False), (2, 0.001, True), (1000, 1.0, False)],
)
def test_too_many_bad_documents_are_refused(bad: int, max_bad: float, refused: bool) -> None:
    ledger = Ledger(documents=LedgerTally(1000, 1000 - bad))
    ledger.documents.record_dropped("bad-json", bad)
    if not refused:
        assert ledger.close(max_bad=max_bad)["documents"]["out"] == 1000 - bad
        return
    with pytest.raises(TooManyRejects, match=rf"{bad:,} of 1,000 documents are bad \({bad:,} bad-json\)") as caught:
        ledger.close(max_bad=max_bad)
    assert caught.value.exit_code == 11
    assert f"--max-bad {bad / 1000:g}" in caught.value.hint


def test_documents_dropped_on_purpose_are_not_bad() -> None:
    ledger = Ledger(documents=LedgerTally(10, 1, {"duplicate": 5, "blank-line": 4}))
    assert ledger.documents.bad == 0
    ledger.close(max_bad=0)


def test_dropping_zero_records_no_reason() -> None:
    tally = LedgerTally()
    tally.record_dropped("bad-json", 0)
    assert tally.dropped == {}


@given(st.lists(LEDGERS, max_size=5))
def test_sum_of_valid_ledgers_is_valid(parts: list[Ledger]) -> None:
    total = Ledger()
    for part in parts:
        total.add(part)
    closed = total.close(max_bad=1)
    for name in ("documents", "characters"):
        assert closed[name]["in"] == sum(tally_of(part, name).came for part in parts)
        assert closed[name]["out"] == sum(tally_of(part, name).out for part in parts)
        for reason, count in closed[name]["dropped"].items():
            assert count == sum(tally_of(part, name).dropped.get(reason, 0) for part in parts)


def test_adding_does_not_change_the_part() -> None:
    total, part = Ledger(), Ledger(LedgerTally(2, 1, {"bad-json": 1}))
    total.add(part)
    total.add(part)
    assert part == Ledger(LedgerTally(2, 1, {"bad-json": 1}))
    assert total.documents == LedgerTally(4, 2, {"bad-json": 2})


def test_blank_lines_do_not_dilute_max_bad() -> None:
    ledger = Ledger(documents=LedgerTally(1010, 9, {"bad-json": 1, "blank-line": 1000}))
    with pytest.raises(TooManyRejects, match=r"1 of 10 documents are bad .* --max-bad 0\.05"):
        ledger.close(max_bad=0.05)
    ledger.close(max_bad=0.1)
