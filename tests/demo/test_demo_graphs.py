"""The graph tasks: what is written can be read, and networkx gives the same answers."""

from __future__ import annotations

import doctest
import random
from collections import Counter
from collections.abc import Callable, Sequence

import networkx as nx
import pytest
from graph_answers import read_edges, read_graph, read_prompt, rename, solve
from transformers import AutoTokenizer

from dmole.demo.tiny import TINY_PATH
from dmole.demo.world import SPLITS, graphs, parse_address, synthetic_samples
from dmole.demo.world.graph_tasks import GRAPH_TASKS, majority_shape
from dmole.demo.world.graphs import (
    WRITERS,
    Graph,
    Node,
    random_graph,
    write_edges,
    write_list,
)
from dmole.demo.world.world import COLOR_NAMES, LIGHT_COLORS, SHAPES

FORMS = ("", "&json=1", "&shots=2", "&json=1&shots=1")
CONTEXT, IMAGE_TOKENS = 512, 64
LONGEST = {"": 45, "&json=1": 220, "&shots=4": 240, "&json=1&shots=1": 420}
"""Tokens of a prompt and its answer, by the form of the address."""
LIGHT_NAMES = [COLOR_NAMES[color] for color in LIGHT_COLORS]
EVERY_TASK = pytest.mark.parametrize("task", sorted(GRAPH_TASKS))


@EVERY_TASK
@pytest.mark.parametrize(
    "form", [FORMS[0], *(pytest.param(f, marks=pytest.mark.slow) for f in FORMS[1:3]), FORMS[3]]
)
def test_networkx_finds_the_same_answer_from_the_text_alone(task: str, form: str) -> None:
    for sample in synthetic_samples(f"synthetic://{task}/test?size=150{form}"):
        right = solve(*read_prompt(sample.prompt))
        if isinstance(right, str):
            assert sample.references == (right,)
        else:
            given = [read_edges(answer) for answer in sample.references]
            assert {frozenset(map(frozenset, edges)) for edges in given} == right
            words = [f"edge {first} {second}" for edges in given for first, second in edges]
            assert " ".join(sample.references) == " ".join(words)


def test_any_order_and_direction_of_a_nodes_edges_is_accepted_and_a_route_has_one() -> None:
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
def test_a_graph_read_back_is_the_graph_written(write: Callable[..., str]) -> None:
    rng = random.Random(0)
    for _ in range(200):
        graph = random_graph(rng, 6, rng.randint(5, 15))
        for told in (graph, graph.without_shapes(), graph.without_shapes([graph.nodes[0].name])):
            assert read_graph(write(told)) == told
        assert read_edges(write_edges(graph.edges)) == graph.edges
        assert nx.is_connected(nx.Graph(graph.edges))
        assert len({frozenset(edge) for edge in graph.edges}) == len(graph.edges)


def test_the_nodes_of_a_link_have_as_many_edges_whether_they_are_joined_or_not() -> None:
    ends: dict[str, Counter[tuple[int, ...]]] = {"yes": Counter(), "no": Counter()}
    for sample in synthetic_samples("synthetic://graph_link/val?size=600"):
        graph, question = read_prompt(sample.prompt)
        degrees = sorted(graph.degree(name) for name in question.split()[-3:-1])
        ends[sample.references[0]][tuple(degrees)] += 1
    for degrees in ends["yes"] | ends["no"]:
        assert abs(ends["yes"][degrees] - ends["no"][degrees]) < 4 * ends["yes"][degrees] ** 0.5


def test_the_shape_with_more_ends_of_edges_is_right_half_of_the_time() -> None:
    leads = Counter()
    for sample in synthetic_samples("synthetic://graph_node/val?size=600"):
        graph, _ = read_prompt(sample.prompt)
        ends = Counter(graph.nodes[name]["shape"] for edge in graph.edges for name in edge)
        right = ends.pop(sample.references[0])
        ends.pop(None)
        others = sum(ends.values())
        leads[(right > others) - (right < others)] += 1
    assert all(abs(leads[lead] - 200) < 50 for lead in (-1, 0, 1))


@EVERY_TASK
def test_other_names_change_the_text_and_not_the_class_of_the_answer(task: str) -> None:
    rng = random.Random(1)
    for _ in range(50):
        problem = GRAPH_TASKS[task](rng)
        moved = dict(zip(LIGHT_NAMES, LIGHT_NAMES[1:] + LIGHT_NAMES[:1], strict=True))
        graph = rename(problem.graph, moved)
        assert write_list(graph) != write_list(problem.graph)
        question, answers = (
            [" ".join(moved.get(word, word) for word in text.split()) for text in texts]
            for texts in ((problem.question,), problem.answers)
        )
        told, target = read_prompt(f"task {write_list(graph)} question {question[0]}")
        right = solve(told, target)
        if isinstance(right, str):
            assert problem.answers == (right,)
        else:
            assert {frozenset(map(frozenset, read_edges(answer))) for answer in answers} == right


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=() if task == "graph_sub" else pytest.mark.slow)
        for task in sorted(GRAPH_TASKS)
    ],
)
def test_splits_share_no_graph_under_any_order_of_its_text(task: str) -> None:
    seen: Counter[object] = Counter()
    for split, size in zip(SPLITS, (2400, 200, 200), strict=True):
        of_split = set()
        for sample in synthetic_samples(f"synthetic://{task}/{split}?size={size}"):
            graph, _ = read_prompt(sample.prompt)
            of_split.add((frozenset(graph), frozenset(map(frozenset, graph.edges))))
        seen.update(of_split)
    assert max(seen.values()) == 1


@EVERY_TASK
def test_graphs_of_solved_problems_are_in_no_other_split_either(task: str) -> None:
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
@pytest.mark.slow
def test_answers_are_balanced(task: str, classes: Sequence[str]) -> None:
    answers = first_answers(task)
    listed = task in ("graph_sub", "graph_path")
    counts = Counter(len(read_edges(answer)) if listed else answer for answer in answers)
    assert set(counts) == set(classes)
    fair = len(answers) / len(classes)
    assert all(abs(times - fair) < 4 * fair**0.5 for times in counts.values())


def test_the_shapes_of_a_node_problem_are_equally_frequent_and_the_answer_is_hidden() -> None:
    for sample in synthetic_samples("synthetic://graph_node/val?size=50"):
        graph, question = read_prompt(sample.prompt)
        target = question.split()[-2]
        assert [name for name, shape in graph.nodes(data="shape") if shape is None] == [target]
        shapes = Counter(shape for _, shape in graph.nodes(data="shape") if shape)
        assert sorted(shapes.values()) == [2, 2]


def test_a_node_without_a_majority_has_no_kind() -> None:
    nodes = (Node("red"), Node("blue", "star"), Node("pink", "cross"))
    assert majority_shape(Graph(nodes, ()), "red") is None
    assert majority_shape(Graph(nodes, (("red", "blue"), ("pink", "red"))), "red") is None
    assert majority_shape(Graph(nodes, (("red", "blue"),)), "red") == "star"


def test_nodes_that_no_way_joins_have_no_route() -> None:
    graph = Graph((Node("red"), Node("blue"), Node("pink")), (("red", "blue"),))
    assert graph.shortest_routes("red", "pink") == []


@EVERY_TASK
def test_forms_show_the_same_graph_and_question(task: str) -> None:
    plain, json, shots = (
        synthetic_samples(f"synthetic://{task}/test?size=20{form}")
        for form in ("", "&json=1", "&shots=3")
    )
    for one, two, three in zip(plain, json, shots, strict=True):
        assert one.references == two.references == three.references
        (graph, question), *others = (read_prompt(s.prompt) for s in (one, two, three))
        for other, target in others:
            assert target == question
            assert other.nodes(data=True) == graph.nodes(data=True)
            assert nx.utils.graphs_equal(other, graph)
        assert three.prompt.count("answer ") == 3
        assert len({one.id, two.id, three.id}) == 3


@EVERY_TASK
def test_solved_problems_in_front_are_right(task: str) -> None:
    for sample in synthetic_samples(f"synthetic://{task}/val?size=20&shots=2"):
        *solved, _ = sample.prompt.removeprefix("task ").split(" task ")
        for block in solved:
            problem, answer = block.split(" answer ")
            right = solve(*read_prompt(f"task {problem}"))
            edges = frozenset(map(frozenset, read_edges(answer)))
            assert answer == right or edges in right


@EVERY_TASK
def test_prompts_are_short_enough_for_the_tiny_model(task: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_PATH)

    def longest(form: str) -> int:
        samples = synthetic_samples(f"synthetic://{task}/train?size=60{form}")
        texts = [f"{sample.prompt} {sample.turns[-1].text}" for sample in samples]
        return max(len(tokenizer(text).input_ids) for text in texts)

    for form, most in LONGEST.items():
        assert longest(form) <= most <= CONTEXT - IMAGE_TOKENS - 3


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("graph_node/train?size=1&hops=1", "known are size, seed, json, picture, shots"),
        ("paint/train?size=1&json=1", "unknown query key 'json'; known are size, seed"),
        ("graph_node/train?size=1&shots=5", "shots must be at most 4, got 5"),
        ("graph_node/train?size=1&shots=2&json=1", "JSON leave room for shots=1, got shots=2"),
    ],
)
def test_a_bad_option_is_refused_by_name(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_samples(f"synthetic://{query}")


def test_an_address_holds_the_options_given() -> None:
    address = parse_address("synthetic://graph_sub/val?size=2&json=1&seed=4")
    assert (address.size, address.seed, address.options) == (2, 4, {"json": 1})


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(graphs).failed == 0
