"""Four questions about small graphs, inspired by arXiv 2506.09738; nothing of it is re-implemented.

That position paper wishes for models that read graphs of texts and pictures, take examples in
context and answer in words or with a graph. It has no algorithm and no data of this kind.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations, product

from dmole.demo.world.generators import Example
from dmole.demo.world.graph_rendering import render
from dmole.demo.world.graphs import (
    WRITERS,
    Graph,
    random_graph,
    random_nodes,
    shuffled,
    write_edges,
)
from dmole.demo.world.world import SHAPES

GRAPH_OPTIONS = {"json": 1, "picture": 1, "shots": 4}
"""Query keys of the graph tasks and their largest values; the smallest is 0, the default."""
SHARES = {"train": range(4), "val": range(4, 6), "test": range(6, 8)}
"""The eighths of all graphs that a split draws from."""
SIZE = 4, 3
"""Nodes and edges of a graph whose shapes are at random."""
LIKE, UNLIKE = 0.8, 0.2
"""Chance of an edge between nodes of one shape and of two, where edges join like to like."""


@dataclass(frozen=True)
class Problem:
    """A question about a graph and its accepted answers, the first of which is taught."""

    graph: Graph
    question: str
    answers: tuple[str, ...]


Asker = Callable[[random.Random], Problem]


def graph_node(rng: random.Random) -> Problem:
    """The untold shape of a node: that of most of its neighbours, for edges join like to like.

    Both shapes told are equally frequent, and nodes of the right one have more edges, as many or
    fewer in equal parts, so that the edges of the node itself are needed.
    """
    wanted, other = rng.sample(SHAPES, 2)
    nodes = list(random_nodes(rng, [wanted, wanted, other, other, wanted]))
    target = nodes[-1].name
    rng.shuffle(nodes)
    lead = rng.choice((-1, 0, 1))
    while True:
        edges = [
            (first.name, second.name)
            for first, second in combinations(nodes, 2)
            if rng.random() < (LIKE if first.shape == second.shape else UNLIKE)
        ]
        graph = Graph(tuple(nodes), shuffled(rng, edges)).without_shapes([target])
        more = _ends(graph, wanted) - _ends(graph, other)
        if kind_of_most(graph, target) == wanted and (more > 0) - (more < 0) == lead:
            return Problem(graph, f"what shape is {target} ?", (wanted,))


def _ends(graph: Graph, shape: str) -> int:
    """How many ends of edges are at nodes of a shape."""
    return sum(len(graph.edges_at(node.name)) for node in graph.nodes if node.shape == shape)


def kind_of_most(graph: Graph, name: str) -> str | None:
    """Return the shape that more than half of a node's neighbours have; None if there is none."""
    shapes = Counter(graph.node(other).shape for other in graph.neighbours(name))
    ((shape, times),) = shapes.most_common(1) or [(None, 0)]
    return shape if 2 * times > shapes.total() else None


def graph_link(rng: random.Random) -> Problem:
    """Whether two nodes are joined; as often as not.

    The two are joined at first. For a no, that edge and another one exchange their ends: no node
    has more edges where the answer is yes.
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
    """A shortest way as edges one behind the other; two or three of them, equally often.

    A way of one edge could be told from the question alone.
    """
    wanted = rng.randint(2, 3)
    while True:
        graph = random_graph(rng, *SIZE)
        ends = list(permutations([node.name for node in graph.nodes], 2))
        pairs = [pair for pair in ends if len(graph.shortest_routes(*pair)[0]) == wanted]
        if pairs:
            first, second = rng.choice(pairs)
            answers = tuple(write_edges(route) for route in graph.shortest_routes(first, second))
            return Problem(graph, f"show line from {first} to {second}", answers)


def graph_sub(rng: random.Random) -> Problem:
    """The edges of a node, in any order and direction; one to three, equally often."""
    wanted = rng.randint(1, 3)
    while True:
        graph = random_graph(rng, *SIZE)
        names = [node.name for node in graph.nodes if len(graph.edges_at(node.name)) == wanted]
        if names:
            name = rng.choice(names)
            answers = _spellings(graph.edges_at(name))
            return Problem(graph, f"which edge has {name} ?", answers)


def _spellings(edges: list[tuple[str, str]]) -> tuple[str, ...]:
    """All texts of an edge list, that of the order given first."""
    return tuple(
        write_edges(turned)
        for ordered in permutations(edges)
        for turned in product(*((edge, edge[::-1]) for edge in ordered))
    )


def graph_example(
    ask: Asker,
    rng: random.Random,
    split: str,
    *,
    json: int = 0,
    picture: int = 0,
    shots: int = 0,
) -> Example:
    """Return picture, prompt and answers of a problem.

    Args:
        ask: What is asked.
        rng: Source of all that is random.
        split: A key of `SHARES`; the graphs of two splits are never the same.
        json: 1 writes the graphs as JSON, 0 as lists.
        picture: 1 leaves the shapes of the nodes to the picture.
        shots: Solved problems put in front, in text alone; at most one as JSON, which is long.

    Returns:
        An example whose question is ``task <graph> question <question>``, behind `shots` such
        blocks that end in ``answer <answer>``.

    Raises:
        ValueError: If more shots are asked for than the tiny model has room for.
    """
    if json and shots > 1:
        raise ValueError(f"graphs as JSON leave room for shots=1, got shots={shots}")
    problem = _problem_of(ask, rng, split)
    pixels = render(rng, problem.graph)
    write = WRITERS[json]
    solved = [
        f"task {write(shot.graph)} question {shot.question} answer {shot.answers[0]}"
        for shot in (_problem_of(ask, rng, split) for _ in range(shots))
    ]
    told = problem.graph.without_shapes() if picture else problem.graph
    prompt = [*solved, f"task {write(told)} question {problem.question}"]
    return Example(pixels, " ".join(prompt), problem.answers)


def _problem_of(ask: Asker, rng: random.Random, split: str) -> Problem:
    while True:
        problem = ask(rng)
        if problem.graph.share(sum(map(len, SHARES.values()))) in SHARES[split]:
            return problem


GRAPH_TASKS: dict[str, Asker] = {
    "graph_link": graph_link,
    "graph_node": graph_node,
    "graph_path": graph_path,
    "graph_sub": graph_sub,
}
"""Each question by the name it has in an address."""
