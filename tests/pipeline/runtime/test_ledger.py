"""The ledger: everything that came in is accounted for, or nothing is published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InternalError, TooManyRejects
from pipeline.runtime.ledger import Ledger, Tally

REASONS = st.sampled_from(["bad-json", "bad-record", "blank-line", "duplicate"])
DROPPED = st.dictionaries(REASONS, st.integers(1, 10_000))


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    """A tally that adds up."""
    out, dropped = draw(st.integers(0, 10_000)), draw(DROPPED)
    return Tally(out + sum(dropped.values()), out, dropped)


LEDGERS = st.builds(Ledger, tallies(), tallies())


def test_an_empty_ledger_adds_up() -> None:
    nothing = {"in": 0, "out": 0, "dropped": {}}
    assert Ledger().close(max_bad=0) == {"documents": nothing, "characters": nothing}


def test_a_ledger_that_adds_up_is_given_as_a_dict_with_its_reasons_in_order() -> None:
    ledger = Ledger(Tally(10, 7, {"duplicate": 2, "blank-line": 1}), Tally(100, 100))
    assert ledger.close() == {
        "documents": {"in": 10, "out": 7, "dropped": {"blank-line": 1, "duplicate": 2}},
        "characters": {"in": 100, "out": 100, "dropped": {}},
    }
    assert list(ledger.close()["documents"]["dropped"]) == ["blank-line", "duplicate"]


@given(ledger=LEDGERS, error=st.integers(-5, 5).filter(bool), where=st.sampled_from(["documents", "characters"]))
def test_one_that_is_lost_or_invented_is_a_bug_of_ours(ledger: Ledger, error: int, where: str) -> None:
    getattr(ledger, where).out += error
    with pytest.raises(InternalError, match=f"ledger of {where} does not add up") as caught:
        ledger.close(max_bad=1)
    assert caught.value.exit_code == 70


@pytest.mark.parametrize(
    ("bad", "max_bad", "refused"),
    [(0, 0.0, False), (1, 0.0, True), (1, 0.001, False), (2, 0.001, True), (1000, 1.0, False)],
)
def test_bad_documents_are_refused_above_the_share_allowed(bad: int, max_bad: float, refused: bool) -> None:
    ledger = Ledger(documents=Tally(1000, 1000 - bad))
    ledger.documents.drop("bad-json", bad)
    if not refused:
        assert ledger.close(max_bad=max_bad)["documents"]["out"] == 1000 - bad
        return
    with pytest.raises(TooManyRejects, match=rf"{bad:,} of 1,000 documents are bad \({bad:,} bad-json\)") as caught:
        ledger.close(max_bad=max_bad)
    assert caught.value.exit_code == 11


def test_what_is_dropped_by_choice_is_not_bad() -> None:
    ledger = Ledger(documents=Tally(10, 1, {"duplicate": 5, "blank-line": 4}))
    assert ledger.documents.bad == 0
    ledger.close(max_bad=0)


def test_dropping_none_leaves_no_reason_behind() -> None:
    tally = Tally()
    tally.drop("bad-json", 0)
    assert tally.dropped == {}


@given(st.lists(LEDGERS, max_size=5))
def test_ledgers_that_add_up_add_up_together(parts: list[Ledger]) -> None:
    whole = Ledger()
    for part in parts:
        whole.add(part)
    closed = whole.close(max_bad=1)
    for what in ("documents", "characters"):
        assert closed[what]["in"] == sum(getattr(part, what).came for part in parts)
        assert closed[what]["out"] == sum(getattr(part, what).out for part in parts)
        for reason, count in closed[what]["dropped"].items():
            assert count == sum(getattr(part, what).dropped.get(reason, 0) for part in parts)


def test_adding_leaves_the_part_as_it_was() -> None:
    whole, part = Ledger(), Ledger(Tally(2, 1, {"bad-json": 1}))
    whole.add(part)
    whole.add(part)
    assert part == Ledger(Tally(2, 1, {"bad-json": 1}))
    assert whole.documents == Tally(4, 2, {"bad-json": 2})
