"""Answers to the graph tasks by networkx, from the text of a prompt."""

from __future__ import annotations

from collections import Counter

import networkx as nx

from dmole.demo.world.graphs import read_graph


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
