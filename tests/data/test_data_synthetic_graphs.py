"""The graph tasks: what is written can be read, and networkx gives the same answers."""

from __future__ import annotations

import doctest
import random
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from transformers import AutoTokenizer

from dmole.data.synthetic import SPLITS, graphs, parse_address, synthetic_samples
from dmole.data.synthetic.graph_rendering import place_nodes, question_mask, render
from dmole.data.synthetic.graph_tasks import GRAPH_TASKS, kind_of_most
from dmole.data.synthetic.graphs import (
    WRITERS,
    Graph,
    Node,
    random_graph,
    read_edges,
    read_graph,
    write_edges,
    write_list,
)
from dmole.data.synthetic.world import COLOR_NAMES, COLORS, LIGHT_COLORS, SHAPES, shape_mask
from dmole.models.tiny import TINY_PATH

FORMS = ("", "&json=1", "&shots=2", "&json=1&shots=1")
CONTEXT, IMAGE_TOKENS = 512, 64
LONGEST_LIST, LONGEST_JSON = 45, 210
LIGHT_NAMES = [COLOR_NAMES[color] for color in LIGHT_COLORS]
EVERY_TASK = pytest.mark.parametrize("task", sorted(GRAPH_TASKS))


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


@EVERY_TASK
@pytest.mark.parametrize("form", FORMS)
def test_networkx_finds_the_same_answer_from_the_text_alone(task, form):
    for sample in synthetic_samples(f"synthetic://{task}/test?size=150{form}"):
        right = solve(*read_prompt(sample.prompt))
        if isinstance(right, str):
            assert sample.references == (right,)
        else:
            given = [read_edges(answer) for answer in sample.references]
            assert {frozenset(map(frozenset, edges)) for edges in given} == right
            words = [f"edge {first} {second}" for edges in given for first, second in edges]
            assert " ".join(sample.references) == " ".join(words)


def test_any_order_and_direction_of_a_nodes_edges_is_accepted_and_a_route_has_one():
    subgraphs = synthetic_samples("synthetic://graph_sub/test?size=60")
    for sample in subgraphs:
        count = len(read_edges(sample.references[0]))
        assert len(set(sample.references)) == {1: 2, 2: 8, 3: 48}[count]
    for sample in synthetic_samples("synthetic://graph_path/test?size=60"):
        named = sample.prompt.split()[-3::2]
        for answer in sample.references:
            edges = read_edges(answer)
            assert [edges[0][0], edges[-1][1]] == named
            assert all(one[1] == other[0] for one, other in nx.utils.pairwise(edges))


@pytest.mark.parametrize("write", WRITERS)
def test_a_graph_read_back_is_the_graph_written(write):
    rng = random.Random(0)
    for _ in range(200):
        graph = random_graph(rng, 6, rng.randint(5, 15))
        for told in (graph, graph.without_shapes(), graph.without_shapes([graph.nodes[0].name])):
            assert read_graph(write(told)) == told
        assert read_edges(write_edges(graph.edges)) == graph.edges
        assert nx.is_connected(nx.Graph(graph.edges))
        assert len({frozenset(edge) for edge in graph.edges}) == len(graph.edges)


def test_text_without_a_graph_is_refused():
    with pytest.raises(ValueError, match="no graph is written in 'a red star'"):
        read_graph("a red star")


@EVERY_TASK
def test_other_names_change_the_text_and_not_the_class_of_the_answer(task):
    rng = random.Random(1)
    for _ in range(50):
        problem = GRAPH_TASKS[task](rng)
        moved = dict(zip(LIGHT_NAMES, LIGHT_NAMES[1:] + LIGHT_NAMES[:1], strict=True))
        graph = problem.graph.renamed(moved)
        assert write_list(graph) != write_list(problem.graph)
        question, answers = (
            [" ".join(moved.get(word, word) for word in text.split()) for text in texts]
            for texts in ((problem.question,), problem.answers)
        )
        told, asked = read_prompt(f"task {write_list(graph)} question {question[0]}")
        right = solve(told, asked)
        if isinstance(right, str):
            assert problem.answers == (right,)
        else:
            assert {frozenset(map(frozenset, read_edges(answer))) for answer in answers} == right


@EVERY_TASK
def test_splits_share_no_graph_under_any_order_of_its_text(task):
    seen: Counter[object] = Counter()
    for split, size in zip(SPLITS, (2400, 200, 200), strict=True):
        of_split = set()
        for sample in synthetic_samples(f"synthetic://{task}/{split}?size={size}"):
            graph, _ = read_prompt(sample.prompt)
            of_split.add((frozenset(graph), frozenset(map(frozenset, graph.edges))))
        seen.update(of_split)
    assert max(seen.values()) == 1


@EVERY_TASK
def test_graphs_of_solved_problems_are_in_no_other_split_either(task):
    shares = {}
    for split in SPLITS:
        samples = synthetic_samples(f"synthetic://{task}/{split}?size=20&shots=2&seed=5")
        blocks = [block for s in samples for block in s.prompt.split("task ")[1:]]
        graphs_told = [read_graph(block.split(" question ")[0]) for block in blocks]
        assert len(graphs_told) == 60
        shares[split] = {graph.share(8) for graph in graphs_told}
    assert not shares["train"] & shares["test"]
    assert not shares["train"] & shares["val"]
    assert not shares["val"] & shares["test"]


def first_answers(task: str, size: int = 1200) -> list[str]:
    return [s.turns[-1].text for s in synthetic_samples(f"synthetic://{task}/train?size={size}")]


@pytest.mark.parametrize(
    ("task", "classes"),
    [
        ("graph_node", SHAPES),
        ("graph_link", ("yes", "no")),
        ("graph_sub", (1, 2, 3)),
        ("graph_path", (2, 3)),
    ],
)
def test_answers_are_balanced(task, classes):
    answers = first_answers(task)
    listed = task in ("graph_sub", "graph_path")
    counts = Counter(len(read_edges(answer)) if listed else answer for answer in answers)
    assert set(counts) == set(classes)
    fair = len(answers) / len(classes)
    assert all(abs(times - fair) < 4 * fair**0.5 for times in counts.values())


def test_the_shapes_of_a_node_problem_are_equally_frequent_and_the_asked_one_is_not_told():
    for sample in synthetic_samples("synthetic://graph_node/val?size=50"):
        graph, question = read_prompt(sample.prompt)
        asked = question.split()[-2]
        assert [name for name, shape in graph.nodes(data="shape") if shape is None] == [asked]
        shapes = Counter(shape for _, shape in graph.nodes(data="shape") if shape)
        assert sorted(shapes.values()) == [2, 2]


def test_a_node_without_a_majority_has_no_kind():
    nodes = (Node("red"), Node("blue", "star"), Node("pink", "cross"))
    assert kind_of_most(Graph(nodes, ()), "red") is None
    assert kind_of_most(Graph(nodes, (("red", "blue"), ("pink", "red"))), "red") is None
    assert kind_of_most(Graph(nodes, (("red", "blue"),)), "red") == "star"


def test_nodes_that_no_way_joins_have_no_route():
    graph = Graph((Node("red"), Node("blue"), Node("pink")), (("red", "blue"),))
    assert graph.shortest_routes("red", "pink") == []


@EVERY_TASK
def test_forms_show_the_same_graph_and_question(task):
    plain, json, shots = (
        synthetic_samples(f"synthetic://{task}/test?size=20{form}")
        for form in ("", "&json=1", "&shots=3")
    )
    for one, two, three in zip(plain, json, shots, strict=True):
        assert one.references == two.references == three.references
        (graph, question), *others = (read_prompt(s.prompt) for s in (one, two, three))
        for other, asked in others:
            assert asked == question
            assert other.nodes(data=True) == graph.nodes(data=True)
            assert nx.utils.graphs_equal(other, graph)
        assert three.prompt.count("answer ") == 3
        assert len({one.id, two.id, three.id}) == 3


@EVERY_TASK
def test_solved_problems_in_front_are_right(task):
    for sample in synthetic_samples(f"synthetic://{task}/val?size=20&shots=2"):
        *solved, _ = sample.prompt.removeprefix("task ").split(" task ")
        for block in solved:
            problem, answer = block.split(" answer ")
            right = solve(*read_prompt(f"task {problem}"))
            edges = frozenset(map(frozenset, read_edges(answer)))
            assert answer == right or edges in right


@EVERY_TASK
def test_prompts_are_short_enough_for_the_tiny_model(task):
    tokenizer = AutoTokenizer.from_pretrained(TINY_PATH)

    def longest(form: str) -> int:
        samples = synthetic_samples(f"synthetic://{task}/train?size=60{form}")
        texts = [f"{sample.prompt} {sample.turns[-1].text}" for sample in samples]
        return max(len(tokenizer(text).input_ids) for text in texts)

    assert longest("") <= LONGEST_LIST + 10
    assert longest("&json=1") <= LONGEST_JSON + 10
    for form in ("&shots=4", "&json=1&shots=1"):
        assert longest(form) + IMAGE_TOKENS + 3 <= CONTEXT


def test_shapes_that_the_text_leaves_out_can_be_read_from_the_picture():
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


def test_nodes_of_a_picture_do_not_overlap_and_edges_are_drawn():
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


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("graph_node/train?size=1&hops=1", "known are size, seed, json, picture, shots"),
        ("paint/train?size=1&json=1", "unknown query key 'json'; known are size, seed"),
        ("graph_node/train?size=1&shots=5", "shots must be at most 4, got 5"),
        ("graph_node/train?size=1&shots=2&json=1", "JSON leave room for shots=1, got shots=2"),
    ],
)
def test_a_bad_option_is_refused_by_name(query, message):
    with pytest.raises(ValueError, match=message):
        synthetic_samples(f"synthetic://{query}")


def test_an_address_holds_the_options_given():
    address = parse_address("synthetic://graph_sub/val?size=2&json=1&seed=4")
    assert (address.size, address.seed, address.options) == (2, 4, {"json": 1})


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(graphs).failed == 0
