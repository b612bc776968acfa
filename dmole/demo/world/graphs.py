"""Small random graphs with words as nodes, and their text formats."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from dmole.demo.world.world import COLOR_NAMES, LIGHT_COLORS, SHAPES

Edge = tuple[str, str]


@dataclass(frozen=True)
class Node:
    """A node with a name and a shape.

    Args:
        name: A name of `COLORS`, unique in a graph, so it links text and image.
        shape: A name of `SHAPES`, shown in text and image; None if it is hidden.
    """

    name: str
    shape: str | None = None


@dataclass(frozen=True)
class Graph:
    """An undirected graph. Order and direction follow the text and have no meaning.

    Args:
        nodes: The nodes in the order of the text.
        edges: Pairs of node names in the order of the text, each in one direction.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def node(self, name: str) -> Node:
        """Return the node with this name."""
        return next(node for node in self.nodes if node.name == name)

    def edges_at(self, name: str) -> list[Edge]:
        """Return the edges of a node in order, each with `name` first."""
        return [edge if edge[0] == name else edge[::-1] for edge in self.edges if name in edge]

    def neighbors(self, name: str) -> list[str]:
        """Return the names at the other ends of a node's edges."""
        return [other for _, other in self.edges_at(name)]

    def has_edge(self, first: str, second: str) -> bool:
        """Return whether there is an edge, in either direction."""
        return (first, second) in self.edges or (second, first) in self.edges

    def shortest_routes(self, start: str, end: str) -> list[list[Edge]]:
        """Return all shortest paths from `start` to `end` as edges; empty if there is no path."""
        routes: list[list[Edge]] = [[edge] for edge in self.edges_at(start)]
        visited = {start}
        while routes:
            complete = [route for route in routes if route[-1][1] == end]
            if complete:
                return complete
            visited |= {route[-1][1] for route in routes}
            routes = [
                [*route, edge]
                for route in routes
                for edge in self.edges_at(route[-1][1])
                if edge[1] not in visited
            ]
        return []

    def share(self, parts: int) -> int:
        """Return the index of this graph's share among `parts` equal shares of all graphs.

        The share depends on the joined names, not on shapes, order or direction.
        """
        edges = sorted(sorted(edge) for edge in self.edges)
        wiring = repr((sorted(node.name for node in self.nodes), edges))
        digest = hashlib.sha256(wiring.encode()).digest()
        return int.from_bytes(digest[:8], "big") % parts

    def without_shapes(self, names: Iterable[str] | None = None) -> Graph:
        """Return the graph with the shapes of some nodes hidden, by default of all."""
        hidden = {node.name for node in self.nodes} if names is None else set(names)
        nodes = (replace(node, shape=None) if node.name in hidden else node for node in self.nodes)
        return replace(self, nodes=tuple(nodes))


def random_nodes(rng: random.Random, shapes: Sequence[str]) -> tuple[Node, ...]:
    """Return a node for each of at most eight shapes, with random names other than white."""
    colors = rng.sample(LIGHT_COLORS, len(shapes))
    return tuple(
        Node(COLOR_NAMES[color], shape) for color, shape in zip(colors, shapes, strict=True)
    )


def random_graph(rng: random.Random, count: int, edges: int) -> Graph:
    """Return a connected graph of `count` nodes with random shapes and `edges` edges.

    Args:
        rng: Source of randomness.
        count: Number of nodes, at most eight.
        edges: Number of edges, at least ``count - 1``: a random tree, then other pairs.
    """
    nodes = random_nodes(rng, rng.choices(SHAPES, k=count))
    names = [node.name for node in nodes]
    linked = [(names[rng.randrange(index)], names[index]) for index in range(1, count)]
    free = [pair for pair in combinations(names, 2) if pair not in linked]
    return Graph(nodes, shuffled(rng, linked + rng.sample(free, edges - len(linked))))


def shuffled(rng: random.Random, edges: Sequence[Edge]) -> tuple[Edge, ...]:
    """Return the edges in random order, each in a random direction."""
    turned = [edge if rng.random() < 0.5 else edge[::-1] for edge in edges]
    rng.shuffle(turned)
    return tuple(turned)


def write_edges(edges: Iterable[Edge]) -> str:
    """Return edges as text.

    Example:
        >>> write_edges([("red", "blue"), ("pink", "red")])
        'edge red blue edge pink red'
    """
    return " ".join(f"edge {first} {second}" for first, second in edges)


def write_list(graph: Graph) -> str:
    """Return a graph as a list of nodes and edges, in the vocabulary of the tiny model.

    Example:
        >>> write_list(Graph((Node("red", "star"), Node("blue")), (("red", "blue"),)))
        'point red star point blue edge red blue'
    """
    nodes = " ".join(f"point {node.name} {node.shape or ''}".rstrip() for node in graph.nodes)
    return f"{nodes} {write_edges(graph.edges)}"


def write_json(graph: Graph) -> str:
    """Return a graph as JSON.

    Example:
        >>> write_json(Graph((Node("red", "star"), Node("blue")), (("red", "blue"),)))
        '{"nodes": {"red": "star", "blue": null}, "edges": [["red", "blue"]]}'
    """
    return json.dumps(
        {"nodes": {node.name: node.shape for node in graph.nodes}, "edges": graph.edges}
    )


WRITERS: tuple[Callable[[Graph], str], ...] = (write_list, write_json)
"""The two text formats of a graph, by the value of the query key ``json``."""
