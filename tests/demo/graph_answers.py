"""The graph tasks read back from their texts, and their answers by networkx."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from dmole.demo.world.graphs import Edge, Graph, Node
from dmole.demo.world.world import COLORS

NODE = re.compile(r"\bpoint (\w+)(?: (circle|square|triangle|star|cross))?(?= |$)")
EDGE = re.compile(rf"\bedge ({'|'.join(COLORS)}) ({'|'.join(COLORS)})(?= |$)")


def read_edges(text: str) -> tuple[Edge, ...]:
    """The edges a text lists."""
    return tuple((first, second) for first, second in EDGE.findall(text))


def read_graph(text: str) -> Graph:
    """The graph that `write_list` or `write_json` wrote."""
    if text.startswith("{"):
        content = json.loads(text)
        nodes = tuple(Node(name, shape) for name, shape in content["nodes"].items())
        return Graph(nodes, tuple((first, second) for first, second in content["edges"]))
    nodes = tuple(Node(name, shape or None) for name, shape in NODE.findall(text))
    assert nodes, f"no graph is written in {text!r}"
    return Graph(nodes, read_edges(text))


def rename(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The same graph with other names of its nodes."""
    return Graph(
        tuple(replace(node, name=names[node.name]) for node in graph.nodes),
        tuple((names[first], names[second]) for first, second in graph.edges),
    )


def read_prompt(prompt: str) -> tuple[nx.Graph, str]:
    """The graph of the last block as networkx has it, and the question."""
    told, question = prompt.rpartition("task ")[2].split(" question ")
    graph = read_graph(told)
    built = nx.Graph()
    built.add_nodes_from((node.name, {"shape": node.shape}) for node in graph.nodes)
    built.add_edges_from(graph.edges)
    return built, question


def solve(graph: nx.Graph, question: str) -> set[frozenset[frozenset[str]]] | str:
    """The right answer: a word, or all right edge lists as sets of edges."""
    named = [word for word in question.split() if word in graph]
    if question.startswith("what shape"):
        shapes = Counter(graph.nodes[other]["shape"] for other in graph[named[0]])
        (first, times), *_ = shapes.most_common()
        assert 2 * times > shapes.total()
        return first
    if question.startswith("is"):
        return "yes" if graph.has_edge(*named) else "no"
    if question.startswith("which edge"):
        return {frozenset(map(frozenset, graph.edges(named[0])))}
    routes = nx.all_shortest_paths(graph, *named)
    return {frozenset(map(frozenset, nx.utils.pairwise(route))) for route in routes}
