"""What is kept of samples gives the same batch as a fresh start, and stays within its bound."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from families import make_samples

from dmole.data.bounded_cache import BoundedCache
from dmole.data.collate import Collator
from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample, Turn


def test_a_cache_stays_within_its_limit_and_serves_passes_over_more_than_fits() -> None:
    cache: BoundedCache[int, int] = BoundedCache(100)
    found = 0
    for _ in range(4):
        for key in range(40):
            value = cache.get(key)
            assert value in (None, key)
            found += value is not None
            cache.put(key, key, 5)
            assert len(cache) <= 20
    assert found > 20  # of 120 that were there before
    cache.put(99, 99, 101)
    assert cache.get(99) is None
    assert len(pickle.loads(pickle.dumps(cache))) == 0


def test_a_kept_text_is_that_of_a_fresh_renderer_and_is_not_rendered_again(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plain = ChatRenderer._template
    monkeypatch.setattr(
        ChatRenderer, "_template", lambda *args, **kw: calls.append(1) or plain(*args, **kw)
    )
    renderer = ChatRenderer(processor)
    first, _, third = make_samples((1, 0, 2))
    talk = replace(first, id="talk", turns=(*first.turns, *third.turns[:1], Turn("assistant", "z")))
    talk = replace(talk, images=first.images + third.images)
    for sample, renderings in ((first, 2), (talk, 4)):
        calls.clear()
        rendered = renderer.render(sample, generation=False)
        assert len(calls) == renderings
        assert renderer.render(replace(sample, id="again"), generation=False) is rendered
        assert len(calls) == renderings
        assert rendered == ChatRenderer(processor).render(sample, generation=False)
    asked = replace(first, turns=first.turns[:1])
    assert renderer.render(asked, generation=True) != renderer.render(first, generation=False)
    with pytest.raises(ValueError, match="'bare' has 0 images and 1 placeholders"):
        renderer.render(replace(first, id="bare", images=()), generation=False)


def test_kept_questions_are_those_of_a_fresh_collator(processor: Any) -> None:
    collator = Collator(processor)
    samples: list[Sample] = make_samples((1, 0, 1, 0))
    collator([(sample, "t") for sample in samples], generation=False)
    for chosen in (samples[2:3], samples[::-1]):
        items = [(sample, "t") for sample in chosen]
        kept = collator(items, generation=False).question
        fresh = Collator(processor)(items, generation=False).question
        assert {k: v.tolist() for k, v in kept.items()} == {k: v.tolist() for k, v in fresh.items()}
