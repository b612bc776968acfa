"""Requests: placeholders, turns and images in memory."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dmole.data import Turn
from dmole.data.decoding import ImageOptions
from dmole.inference import Request, make_request


def test_images_without_a_placeholder_come_before_the_prompt() -> None:
    assert make_request("why?", ["a.png", "b.png"]).turns[0].text == "<image>\n<image>\nwhy?"
    assert make_request("in <image>?", "a.png").turns[0].text == "in <image>?"
    assert make_request("why?").images == ()
    with pytest.raises(ValueError, match="1 placeholders <image> for 2 images"):
        make_request("in <image>?", ["a.png", "b.png"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_an_image_in_memory_is_treated_as_a_file_is(mode: str) -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    picture = Image.fromarray(array).convert(mode)
    loaded = make_request("?", picture).images[0].load()
    assert np.array_equal(np.asarray(loaded), np.asarray(picture.convert("RGB")))
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    white = make_request("?", clear, options=ImageOptions("white")).images[0].load()
    assert white.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "take turns"),
        (["assistant"], "take turns"),
        (["user", "user"], "take turns"),
        (["user", "assistant"], "take turns"),
        (["user", "system"], "a system turn must be the first"),
    ],
)
def test_a_conversation_that_nobody_can_continue_is_refused(roles: list[str], message: str) -> None:
    turns = tuple(Turn(role, "text") for role in roles)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Request(turns)


def test_a_request_of_no_tokens_and_an_image_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        make_request("?", max_new_tokens=0)
    with pytest.raises(TypeError, match="a path, bytes or a PIL image, got int"):
        make_request("?", [3])  # type: ignore[list-item]
