"""The pictures of graphs: what is drawn can be read from the pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
from graph_answers import read_prompt, solve

from dmole.demo.world import synthetic_samples
from dmole.demo.world.graph_rendering import place_nodes, question_mask, render
from dmole.demo.world.graphs import Graph, random_graph
from dmole.demo.world.masks import shape_mask
from dmole.demo.world.world import COLOR_NAMES, COLORS, LIGHT_COLORS, SHAPES

LIGHT_NAMES = [COLOR_NAMES[color] for color in LIGHT_COLORS]


@pytest.mark.slow
def test_shapes_that_the_text_leaves_out_can_be_read_from_the_picture() -> None:
    for sample in synthetic_samples("synthetic://graph_node/test?size=40&picture=1"):
        graph, question = read_prompt(sample.prompt)
        assert not any(shape for _, shape in graph.nodes(data="shape"))
        pixels = sample.images[0].array.astype(float)
        for name in graph:
            graph.nodes[name]["shape"] = shape_seen(pixels, name)
        assert graph.nodes[question.split()[-2]]["shape"] == "?"
        assert sample.references == (solve(graph, question),)


def shape_seen(pixels: np.ndarray, name: str) -> str:
    """The shape whose mask fits the pixels of a color best, wherever it stands."""
    near = [np.abs(pixels - COLORS[other]).max(-1) for other in LIGHT_NAMES]
    seen = (near[LIGHT_NAMES.index(name)] < 18) & (np.argmin(near, 0) == LIGHT_NAMES.index(name))
    windows = np.lib.stride_tricks.sliding_window_view(seen, (16, 16))
    masks = [shape_mask(label, 16) > 0.9 for label in range(len(SHAPES))]
    masks.append(question_mask(16) > 0.9)
    fits = [(windows == mask).sum((-1, -2)).max() for mask in masks]
    return (*SHAPES, "?")[int(np.argmax(fits))]


def test_nodes_of_a_picture_do_not_overlap_and_edges_are_drawn() -> None:
    rng = random.Random(2)
    for count in range(2, 8):
        graph = random_graph(rng, count, count - 1)
        covered = np.zeros((16, 16), int)
        for thing in place_nodes(random.Random(count), graph).values():
            left, top, right, bottom = thing.box
            assert min(left, top) >= 0
            assert max(right, bottom) <= 16
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        bare = Graph(graph.nodes, ())
        with_edges, without = (render(random.Random(3), drawn) for drawn in (graph, bare))
        assert (with_edges != without).any(-1).sum() > 0
