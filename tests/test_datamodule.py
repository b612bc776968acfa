from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dmole import datamodule as module
from dmole.data.sample import Sample, Turn
from dmole.data.sequences import SampleList
from dmole.data.task import Task
from dmole.datamodule import ContinualDataModule
from dmole.run.context import EvaluationPass
from dmole.streams.stream import Stage


def write_task(root: Path, name: str, *, train: int = 10, test: int = 5) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    for split, count in (("train", train), ("test", test)):
        items = [
            {"id": f"{split}{i}", "text": f"{name} {i}?", "answer": f"{i}", "image": "red.png"}
            for i in range(count)
        ]
        (folder / f"{split}.json").write_text(json.dumps(items))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_task(tmp_path, name)
    return tmp_path


def make(root: Path, processor: Any = None, **options: Any) -> ContinualDataModule:
    tasks = [
        Task("a", train="a/train.json", test="a/test.json", batch_size=options.pop("a_size", None)),
        Task("b", train="b/train.json", test="b/test.json", epochs=3, image_root="b"),
    ]
    data = ContinualDataModule(tasks, **{"data_root": str(root), "batch_size": 4} | options)
    if processor is not None:
        data.attach_processor(processor)
    return data


def stage(index: int, *names: str) -> Stage:
    return Stage(index, "-".join(names), names, "expert")


@pytest.fixture
def llava(processors: dict[str, Any]) -> Any:
    return processors["llava"]


def pretend_ranks(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(module, "_rank", lambda: (rank, world))


def test_samples_are_read_once(root: Path) -> None:
    data = make(root)
    assert data.task_names == ["a", "b"]
    assert len(data.train_samples("a")) == 10
    assert data.train_samples("a") is data.train_samples("a")
    assert [sample.references for sample in data.test_samples("b")][:2] == [("0",), ("1",)]


def test_paths_are_relative_to_the_working_directory_by_default(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert len(make(root, data_root=None).test_samples("b")) == 5


def test_unknown_task_is_named(root: Path) -> None:
    data = make(root)
    for call in (data.task, data.train_samples, data.test_samples):
        with pytest.raises(ValueError, match="there is no task 'c', only a, b"):
            call("c")
    with pytest.raises(ValueError, match="there is no task 'c'"):
        data.set_stage(stage(1, "a", "c"))
    with pytest.raises(ValueError, match="there is no task 'c'"):
        data.set_evaluation(EvaluationPass(pending={"c": [0]}))


def test_loaders_need_processor_and_stage(root: Path, llava: Any) -> None:
    data = make(root)
    with pytest.raises(RuntimeError, match="no stage: call set_stage first"):
        data.train_dataloader()
    data.set_stage(stage(1, "a"))
    with pytest.raises(RuntimeError, match="no processor: call attach_processor first"):
        data.train_dataloader()
    with pytest.raises(ValueError, match="stage 1 has no task"):
        data.set_stage(stage(1))


def test_stage_decides_what_is_served(root: Path, llava: Any) -> None:
    data = make(root, llava)
    for index, names in ((1, ["a"]), (2, ["b"]), (3, ["a", "b"])):
        data.set_stage(stage(index, *names))
        batches = list(data.train_dataloader())
        served = sorted(
            (task, sample)
            for batch in batches
            for task, sample in zip(batch.task_names, batch.sample_ids, strict=True)
        )
        assert served == sorted((name, f"train{i}") for name in names for i in range(10))
        assert all(batch.labels is not None for batch in batches)


def test_order_differs_between_stages_and_seeds(root: Path, llava: Any) -> None:
    orders = set()
    for seed, index in ((0, 1), (0, 2), (1, 1)):
        data = make(root, llava, seed=seed)
        data.set_stage(stage(index, "a"))
        orders.add(tuple(i for batch in data.train_dataloader() for i in batch.sample_ids))
    assert len(orders) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_large_files_are_served_as_small_ones_are(
    root: Path, llava: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def served() -> list[list[str]]:
        data = make(root, llava, num_workers=workers)
        data.set_stage(stage(1, "a", "b"))
        loaders = [data.train_dataloader(), *data.test_dataloader()]
        loaders += data.proxy_batches(stage(2, "b"), ["b"], 0.5, 1)
        return [batch.sample_ids for loader in loaders for batch in loader]

    small = served()
    monkeypatch.setenv("DMOLE_CACHE", str(root / "cache"))
    monkeypatch.setattr("dmole.data.source.IN_MEMORY", 4)
    assert served() == small
    assert len(list((root / "cache").glob("*.arrow"))) == 4


def test_epochs_and_batch_size_of_a_mixed_stage(root: Path, llava: Any) -> None:
    data = make(root, llava, a_size=3)
    assert (data.epochs(["a"]), data.epochs(["b"]), data.epochs(["a", "b"])) == (1, 3, 3)
    sizes = [data.stage_batch_size(names) for names in (["a"], ["b"], ["a", "b"])]
    assert sizes == [3, 4, 3]
    data.set_stage(stage(1, "a"))
    assert [len(batch) for batch in data.train_dataloader()] == [3, 3, 3, 1]


def test_pending_answers_alone_are_served(root: Path, llava: Any) -> None:
    data = make(root, llava, eval_batch_size=2)
    assert data.pending == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3, 4]}
    assert [len(loader) for loader in data.test_dataloader()] == [3, 3]
    data.set_evaluation(EvaluationPass(pending={"b": [4, 0, 2], "a": []}))
    assert data.pending == {"b": [4, 0, 2]}
    (loader,) = data.test_dataloader()
    batches = list(loader)
    assert [batch.sample_ids for batch in batches] == [["test4", "test0"], ["test2"]]
    assert all(batch.labels is None for batch in batches)
    data.set_evaluation(EvaluationPass(pending={}))
    assert data.test_dataloader() == []


@pytest.mark.parametrize("options", [{"eval_batch_size": 2}, {"eval_tokens_per_batch": 120}])
def test_a_resumed_pass_serves_the_batches_that_lack_an_answer(
    root: Path, llava: Any, options: dict[str, int]
) -> None:
    data = make(root, llava, **options)
    first, second, *rest = (batch.sample_ids for batch in data.test_dataloader()[0])
    answered = {f"a/test/{name}": "x" for name in [*first, *second[1:]]}
    data.set_evaluation(EvaluationPass(pending={"a": list(range(5))}, earlier_answers=answered))
    assert [batch.sample_ids for batch in data.test_dataloader()[0]] == [second, *rest]


def test_ranks_share_the_answers_without_duplicates(
    root: Path, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(root, llava)
    served = []
    for rank in range(2):
        pretend_ranks(monkeypatch, rank, 2)
        served.append([i for batch in data.test_dataloader()[0] for i in batch.sample_ids])
    assert served == [["test0", "test2", "test4"], ["test1", "test3"]]


def test_embedding_loader_keeps_the_order(
    root: Path, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(root, llava, eval_batch_size=4)
    items = [(sample, "a") for sample in data.train_samples("a")]
    batches = list(data.embedding_loader(items))
    assert [i for b in batches for i in b.sample_ids] == [f"train{i}" for i in range(10)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert batches[0].labels is not None
    tests = [(sample, "b") for sample in data.test_samples("b")]
    assert next(iter(data.embedding_loader(tests, generation=True))).labels is None
    pretend_ranks(monkeypatch, 1, 3)
    shares = [len(data.embedding_loader(items, shard=shard)) for shard in (False, True)]
    assert shares == [3, 1]
    share = [i for b in data.embedding_loader(items, shard=True) for i in b.sample_ids]
    assert share == ["train1", "train4", "train7"]


@pytest.mark.parametrize("fraction", [0.01, 0.34, 0.5, 1.0])
def test_proxy_batches_are_a_seeded_part_of_the_task(
    root: Path, llava: Any, fraction: float
) -> None:
    data = make(root, llava, batch_size=2)

    def served(seed: int) -> list[list[str]]:
        return [
            part.sample_ids for (part,) in data.proxy_batches(stage(1, "a"), ["a"], fraction, seed)
        ]

    batches = served(0)
    assert len(batches) == max(1, math.ceil(fraction * 5))
    assert served(0) == batches
    assert served(1) != batches
    flat = [i for batch in batches for i in batch]
    assert len(set(flat)) == len(flat)


def test_ranks_share_the_proxy_batches_of_the_same_global_size(
    root: Path, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(root, llava, batch_size=4)
    whole = [part.sample_ids for (part,) in data.proxy_batches(stage(1, "a"), ["a"], 1.0, 0)]
    assert [len(batch) for batch in whole] == [4, 4, 2]
    data = make(root, llava, batch_size=1)
    shares = []
    for rank in range(4):
        pretend_ranks(monkeypatch, rank, 4)
        batches = data.proxy_batches(stage(1, "a"), ["a"], 1.0, 0)
        shares.append([[part.sample_ids for part in batch] for batch in batches])
    sizes = [[len(batch) for batch in share] for share in shares]
    assert sizes == [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]]
    joint = [[ids for part in batch for (ids,) in part] for batch in zip(*shares, strict=True)]
    assert joint == whole


def test_random_steps_use_all_samples_before_one_again_and_tasks_take_turns(
    root: Path, llava: Any
) -> None:
    data = make(root, llava, batch_size=4)
    alone = [part.sample_ids for (part,) in data.random_steps(stage(1, "a"), 6, 0)]
    assert [len(ids) for ids in alone] == [4, 4, 2] * 2
    first, second = ([*itertools.chain(*alone[i : i + 3])] for i in (0, 3))
    assert sorted(first) == sorted(second) == sorted({*first})
    assert first != second
    both = stage(1, "a", "b")
    turns = [(part.task_names, part.sample_ids) for (part,) in data.random_steps(both, 5, 0)]
    assert [{*names} for names, _ in turns] == [{"a"}, {"b"}, {"a"}, {"b"}, {"a"}]
    assert [ids for _, ids in turns[::2]] == alone[:3]


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
def test_bad_proxy_fraction_is_refused(root: Path, llava: Any, fraction: float) -> None:
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        make(root, llava).proxy_batches(stage(1, "a"), ["a"], fraction, 0)


def test_fingerprint_follows_the_texts(root: Path) -> None:
    before = make(root).fingerprint()
    assert set(before) == {"a", "b"}
    assert len({value for splits in before.values() for value in splits.values()}) == 4
    assert make(root).fingerprint() == before
    path = root / "a" / "test.json"
    path.write_text(path.read_text().replace('"answer": "3"', '"answer": "three"'))
    after = make(root).fingerprint()
    assert after["a"]["test"] != before["a"]["test"]
    assert after["a"]["train"] == before["a"]["train"]
    assert after["b"] == before["b"]


def test_fingerprint_follows_what_metrics_need_beside_the_answer(root: Path) -> None:
    path = root / "a" / "test.json"
    items = json.loads(path.read_text())
    before = make(root).fingerprint()
    for change in ({"choices": ["x", "y"]}, {"size": [4, 3]}, {"size": [3, 4]}):
        path.write_text(json.dumps([items[0] | change, *items[1:]]))
        after = make(root).fingerprint()
        assert after["a"]["test"] != before["a"]["test"]
        assert after["a"]["train"] == before["a"]["train"]
        before = after


def test_fingerprint_ignores_keys_that_no_metric_reads(root: Path) -> None:
    path = root / "a" / "test.json"
    items = json.loads(path.read_text())
    before = make(root).fingerprint()
    path.write_text(json.dumps([item | {"category": "default"} for item in items]))
    assert make(root).test_samples("a")[0].metadata["category"] == "default"
    assert make(root).fingerprint() == before


def test_the_fingerprint_of_a_sample_is_fixed() -> None:
    # checkpoints and run folders of earlier versions hold it
    facts = {"category": "c", "question_id": 7, "image": "", "size": [1, 2], "question": "Q"}
    turns = (Turn("user", "Q"), Turn("assistant", "A"))
    sample = Sample("7", turns, (), ("A", "B"), facts)
    before = "6e98589829025d4831bc123999c4d7383760818a336da972a14aaa69c7d1bdf3"
    assert SampleList([sample]).fingerprint() == before


def test_check_finds_bad_data_of_any_task(root: Path) -> None:
    make(root).check()
    (root / "b" / "test.json").write_text("[]")
    with pytest.raises(ValueError, match=r"test.json: holds no items"):
        make(root).check()
    (root / "b" / "test.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"test.json does not exist"):
        make(root).check()


def test_check_decodes_images_only_when_told(root: Path) -> None:
    (root / "b" / "red.png").write_bytes(b"not an image")
    make(root).check()
    with pytest.raises(ValueError, match=r"cannot read image .*red.png"):
        make(root, verify_images=True).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "^data.batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "^data.eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "^data.num_workers must be at least 0, got -1"),
        ({"max_length": 0}, "^data.max_length must be at least 1, got 0"),
        ({"eval_limit": 0}, "^data.eval_limit must be at least 1, got 0"),
        ({"max_tokens_per_batch": 2**40}, "^data.max_tokens_per_batch must be at most 2147483648"),
        ({"eval_tokens_per_batch": 10**20}, "^data.eval_tokens_per_batch must be at most 21474"),
    ],
)
def test_bad_arguments_are_refused(
    root: Path, llava: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(root, llava, **options)


def test_lightning_moves_a_batch(root: Path, llava: Any) -> None:
    from lightning.fabric.utilities import move_data_to_device

    data = make(root, llava)
    data.set_stage(stage(1, "a"))
    batch = next(iter(data.train_dataloader()))
    moved = move_data_to_device(batch, torch.device("meta"))
    for tensors in (moved.inputs, moved.question):
        assert all(value.device.type == "meta" for value in tensors.values())
    assert moved.labels.device.type == moved.image_counts.device.type == "meta"
    assert moved.sample_ids == batch.sample_ids


def test_module_can_be_written_in_yaml(root: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(ContinualDataModule, "data")
    text = f"""
    data:
      data_root: {root}
      tasks:
        - {{name: a, train: a/train.json, test: a/test.json, metric: vqa_soft}}
        - name: b
          train: b/train.json
          test: b/test.json
          metric: {{class_path: dmole.metrics.ExactMatch}}
    """
    data = parser.instantiate(parser.parse_string(text)).data
    assert data.task("a").metric == "vqa_soft"
    assert type(data.task("b").metric).__name__ == "ExactMatch"
    data.check()


@pytest.mark.parametrize(("max_length", "limit"), [(None, 40), (30, 30)])
def test_the_models_context_is_the_limit_where_none_is_set(
    root: Path, llava: Any, max_length: int | None, limit: int
) -> None:
    data = make(root, max_length=max_length)
    data.attach_processor(llava, 40)
    assert data.collator.max_length == limit


def test_a_repeated_task_serves_each_sample_so_often_in_an_epoch(root: Path, llava: Any) -> None:
    task = Task("a", train="a/train.json", test="a/test.json", repeat=3)
    data = ContinualDataModule([task], data_root=str(root), batch_size=1)
    data.attach_processor(llava)
    data.set_stage(stage(1, "a"))
    served = [batch.sample_ids[0] for batch in data.train_dataloader()]
    assert sorted(served) == sorted([f"train{i}" for i in range(10)] * 3)
    assert len(data.train_samples("a")) == 10


def test_tasks_that_are_only_scored_are_not_learned(root: Path) -> None:
    kept = Task("kept", test="b/test.json", eval_only=True)
    tasks = [Task("a", train="a/train.json", test="a/test.json"), kept]
    data = ContinualDataModule(tasks, data_root=str(root))
    assert data.task_names == ["a", "kept"]
    assert data.training_task_names == ["a"]
    data.check()
    assert set(data.fingerprint()["kept"]) == {"test"}


def test_in_step_a_rank_with_fewer_batches_gets_fillers(
    root: Path, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_ranks(monkeypatch, 1, 2)
    monkeypatch.setattr(ContinualDataModule, "_most", lambda self, count: 3)  # of all ranks
    data = make(root, llava, eval_batch_size=1)
    data.keep_in_step(training=True, evaluation=True)
    data.set_evaluation(EvaluationPass(pending={"a": [0, 1, 2, 3, 4]}))
    (loader,) = data.test_dataloader()  # 5 samples on 2 ranks
    assert [batch.real for batch in loader] == [1, 1, 0]
    embedded = data.embedding_loader([(s, "a") for s in data.train_samples("a")[:3]], shard=True)
    assert [batch.real for batch in embedded] == [1, 0, 0]
    monkeypatch.setattr(ContinualDataModule, "_most", lambda self, count: count)
    # of the 10 samples the second batch of 8 has 2, all on rank 0
    parts = list(data.proxy_batches(stage(1, "a"), ["a"], 1.0, seed=0))
    assert [[part.real for part in batch] for batch in parts] == [[4], [0]]
    for batch in [*loader, *embedded, *parts[1]]:
        assert batch.image_counts.any()
