"""Stop sequences end an answer at the same place, however its text arrives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmole.serving.stops import StopFilter

TEXT = st.text("ab<>", max_size=12)


def cut(text: str, stops: list[str]) -> str:
    """Return the text before the stop sequence that is complete first."""
    for end in range(len(text) + 1):
        found = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)]
    return text


@given(TEXT, st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3), st.data())
def test_pieces_of_any_size_give_the_text_before_the_first_stop_sequence(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stop, shown, rest = StopFilter(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += stop.feed(rest[:size])
        rest = rest[size:]
        assert cut(text, stops).startswith(shown)
    shown += stop.end()
    assert shown == cut(text, stops)
    assert stop.stopped == any(sequence in text for sequence in stops)
