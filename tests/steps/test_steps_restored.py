"""Errors of a restored state name its file; errors of data and model stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dmole.steps.restored import RestoredState

FILE = Path("runs/x/stage.ckpt")


def fail(file: Path | None, error: type[Exception], *calls: str) -> None:
    """Raise an error after some calls of a restored state."""
    restored = RestoredState()
    with restored.of(file):
        for call in calls:
            getattr(restored, call)()
        raise error("step")


@pytest.mark.parametrize("calls", [("enter",), ("enter", "leave", "enter")])
def test_an_error_where_the_state_is_used_names_the_file(calls: tuple[str, ...]) -> None:
    message = r"^cannot use checkpoint runs/x/stage\.ckpt: KeyError: 'step'$"
    with pytest.raises(ValueError, match=message):
        fail(FILE, KeyError, *calls)


@pytest.mark.parametrize(
    ("file", "error", "calls"),
    [
        (FILE, KeyError, ()),
        (FILE, KeyError, ("enter", "leave")),
        (FILE, KeyError, ("enter", "close", "enter")),  # the second one is of the next step
        (FILE, torch.OutOfMemoryError, ("enter",)),
        (None, KeyError, ("enter",)),
    ],
)
def test_other_errors_stay_as_they_are(
    file: Path | None, error: type[Exception], calls: tuple[str, ...]
) -> None:
    with pytest.raises(error):
        fail(file, error, *calls)
