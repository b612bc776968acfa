"""Four questions about small graphs, inspired by arXiv 2506.09738.

That position paper calls for models that read graphs of texts and images, use examples in context
and answer in words or with a graph. It has no algorithm and no data of this kind, so nothing of it
is re-implemented.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations, product

from dmole.demo.world.graph_rendering import render
from dmole.demo.world.graphs import (
    WRITERS,
    Graph,
    random_graph,
    random_nodes,
    shuffled,
    write_edges,
)
from dmole.demo.world.words import Example
from dmole.demo.world.world import SHAPES

GRAPH_OPTIONS = {"json": 1, "picture": 1, "shots": 4}
"""Query keys of the graph tasks and their largest values; the smallest is 0, the default."""
SHARES = {"train": range(4), "val": range(4, 6), "test": range(6, 8)}
"""The eighths of all graphs that each split draws from."""
SIZE = 4, 3
"""Number of nodes and edges of a graph with random shapes."""
SAME_SHAPE, OTHER_SHAPE = 0.8, 0.2
"""Probability of an edge between nodes of the same and of different shapes, in `graph_node`."""


@dataclass(frozen=True)
class Problem:
    """A question about a graph and its accepted answers, the first of which is trained."""

    graph: Graph
    question: str
    answers: tuple[str, ...]


ProblemGenerator = Callable[[random.Random], Problem]


def graph_node(rng: random.Random) -> Problem:
    """The hidden shape of a node: that of most of its neighbors, since most edges join one shape.

    Both visible shapes are equally frequent. Nodes of the correct shape have more, as many or fewer
    edges than the others, equally often, so that the edges of the node itself are needed.
    """
    shape, other = rng.sample(SHAPES, 2)
    nodes = list(random_nodes(rng, [shape, shape, other, other, shape]))
    target = nodes[-1].name
    rng.shuffle(nodes)
    lead = rng.choice((-1, 0, 1))
    while True:
        edges = [
            (first.name, second.name)
            for first, second in combinations(nodes, 2)
            if rng.random() < (SAME_SHAPE if first.shape == second.shape else OTHER_SHAPE)
        ]
        graph = Graph(tuple(nodes), shuffled(rng, edges)).without_shapes([target])
        more = _count_ends(graph, shape) - _count_ends(graph, other)
        if majority_shape(graph, target) == shape and (more > 0) - (more < 0) == lead:
            return Problem(graph, f"what shape is {target} ?", (shape,))


def _count_ends(graph: Graph, shape: str) -> int:
    """Return the number of ends of edges at nodes of a shape."""
    return sum(len(graph.edges_at(node.name)) for node in graph.nodes if node.shape == shape)


def majority_shape(graph: Graph, name: str) -> str | None:
    """Return the shape of more than half of a node's neighbors; None if there is none."""
    shapes = Counter(graph.node(other).shape for other in graph.neighbors(name))
    ((shape, times),) = shapes.most_common(1) or [(None, 0)]
    return shape if 2 * times > shapes.total() else None


def graph_link(rng: random.Random) -> Problem:
    """Whether two nodes are joined; yes and no are equally frequent.

    The two nodes are joined first. For a no, their edge and another one exchange ends, so the
    number of edges of a node does not depend on the answer.
    """
    while True:
        graph = random_graph(rng, *SIZE)
        (first, second), (third, fourth) = edges = shuffled(rng, graph.edges)[:2]
        swapped = ((first, third), (second, fourth))
        names = {first, second, third, fourth}
        if len(names) == 4 and not any(graph.has_edge(*edge) for edge in swapped):
            break
    linked = rng.random() < 0.5
    if not linked:
        kept = [edge for edge in graph.edges if edge not in edges and edge[::-1] not in edges]
        graph = Graph(graph.nodes, shuffled(rng, [*kept, *swapped]))
    return Problem(graph, f"is there edge {first} {second} ?", ("yes" if linked else "no",))


def graph_path(rng: random.Random) -> Problem:
    """A shortest path as consecutive edges; two or three of them, equally often.

    A path of one edge would follow from the question alone.
    """
    length = rng.randint(2, 3)
    while True:
        graph = random_graph(rng, *SIZE)
        ends = list(permutations([node.name for node in graph.nodes], 2))
        pairs = [pair for pair in ends if len(graph.shortest_routes(*pair)[0]) == length]
        if pairs:
            first, second = rng.choice(pairs)
            answers = tuple(write_edges(route) for route in graph.shortest_routes(first, second))
            return Problem(graph, f"show line from {first} to {second}", answers)


def graph_sub(rng: random.Random) -> Problem:
    """The edges of a node, in any order and direction; one to three, equally often."""
    degree = rng.randint(1, 3)
    while True:
        graph = random_graph(rng, *SIZE)
        names = [node.name for node in graph.nodes if len(graph.edges_at(node.name)) == degree]
        if names:
            name = rng.choice(names)
            answers = _spellings(graph.edges_at(name))
            return Problem(graph, f"which edge has {name} ?", answers)


def _spellings(edges: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return all texts of an edge list, that of the given order first."""
    return tuple(
        write_edges(turned)
        for ordered in permutations(edges)
        for turned in product(*((edge, edge[::-1]) for edge in ordered))
    )


def graph_example(
    generate: ProblemGenerator,
    rng: random.Random,
    split: str,
    *,
    json: int = 0,
    picture: int = 0,
    shots: int = 0,
) -> Example:
    """Return image, prompt and answers of a problem.

    Args:
        generate: Generator of the problem.
        rng: Source of randomness.
        split: A key of `SHARES`; the graphs of two splits are never the same.
        json: 1 writes the graphs as JSON, 0 as lists.
        picture: 1 shows the shapes of the nodes in the image only.
        shots: Number of solved problems before the question, as text; at most one as JSON, which
            is long.

    Returns:
        An example whose question is ``task <graph> question <question>``, after `shots` such
        blocks that end in ``answer <answer>``.

    Raises:
        ValueError: If the prompt with the shots exceeds the context of the tiny model.
    """
    if json and shots > 1:
        raise ValueError(f"graphs as JSON leave room for shots=1, got shots={shots}")
    problem = _problem_of(generate, rng, split)
    pixels = render(rng, problem.graph)
    write = WRITERS[json]
    solved = [
        f"task {write(shot.graph)} question {shot.question} answer {shot.answers[0]}"
        for shot in (_problem_of(generate, rng, split) for _ in range(shots))
    ]
    shown = problem.graph.without_shapes() if picture else problem.graph
    prompt = [*solved, f"task {write(shown)} question {problem.question}"]
    return Example(pixels, " ".join(prompt), problem.answers)


def _problem_of(generate: ProblemGenerator, rng: random.Random, split: str) -> Problem:
    while True:
        problem = generate(rng)
        if problem.graph.share(sum(map(len, SHARES.values()))) in SHARES[split]:
            return problem


GRAPH_TASKS: dict[str, ProblemGenerator] = {
    "graph_link": graph_link,
    "graph_node": graph_node,
    "graph_path": graph_path,
    "graph_sub": graph_sub,
}
"""The graph tasks by their name in an address."""
