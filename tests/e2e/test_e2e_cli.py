from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from small_runs import FitWords, Recipe, read_csv

from dmole import __version__
from dmole.cli.main import main
from dmole.metrics import read_matrix
from dmole.predictor import Predictor
from dmole.storage.predictions import read_stage

MATRICES = ("evaluation_matrix.csv", "oracle_matrix.csv")


def python(*words: str) -> str:
    return subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, text=True
    ).stdout


# -- verbs that load no model ------------------------------------------------------------------


def test_help_and_version_load_no_torch() -> None:
    code = """
import sys
from dmole.cli.main import main
codes = [main(["--help"]), main(["--version"]), main([]), main(["train"])]
print(codes, [name for name in ("torch", "lightning", "transformers") if name in sys.modules])
"""
    assert python("-c", code).splitlines()[-1] == "[0, 0, 0, 2] []"


def test_the_module_is_the_console_script() -> None:
    assert python("-m", "dmole", "--version") == f"dmole {__version__}\n"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in ("fit", "allocate", "evaluate", "predict", "compare", "data make-example"):
        assert f"\n  {verb} " in text


def test_the_help_of_fit_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for key in ("--trainer.incremental_evaluation", "--model.alpha", "--data.tasks", "--ckpt_path"):
        assert key in text


# -- configs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_log_says_which_config_was_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fit_words: FitWords,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(fit_words(tmp_path, verb="allocate")) == 0
    shipped = capsys.readouterr().err.splitlines()[0]
    assert shipped.startswith("config ")
    assert shipped.endswith("configs/quickstart.yaml")
    text = Path(shipped.removeprefix("config ")).read_text(encoding="utf-8")
    Path("quickstart.yaml").write_text(text, encoding="utf-8")
    assert main(fit_words(tmp_path, verb="allocate")) == 0
    assert capsys.readouterr().err.splitlines()[0] == "config quickstart.yaml"


def test_the_last_config_and_then_the_flags_win(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fit_words: FitWords
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{seed_everything: 5, model: {alpha: 3.0, beams: 2}}")
    flags = ["--config", str(own), "--model.alpha", "4", "--print_config"]
    with pytest.raises(SystemExit):
        main(fit_words(tmp_path, *flags))
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["model"]["alpha"] == 4.0  # no line of the log is in it
    assert "seed_everything: 5\n" in text
    assert "  alpha: 4.0\n" in text
    assert "  beams: 2\n" in text


# -- allocate ----------------------------------------------------------------------------------


def test_allocate_writes_nothing_and_prints_what_fit_will_do(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fit_words: FitWords
) -> None:
    assert main(fit_words(tmp_path / "runs", verb="allocate")) == 0
    assert not (tmp_path / "runs").exists()
    printed, task = {}, None
    for line in capsys.readouterr().out.splitlines():
        words = line.split()
        if words[0] == "expert":
            task = words[1].rstrip(":")
        elif line.startswith("  ") and "." in words[0]:
            printed[task, words[0]] = " ".join(words[1:])
    fitted = {
        (row["expert"], row["unit"]): f"{float(row['score']):.4g} "
        + (f"rank {row['rank']}" if row["selected"] == "1" else "-")
        for row in read_csv(quick_run / "allocation.csv")
    }
    assert printed == fitted


@pytest.mark.slow
def test_allocate_says_that_training_decides_where_a_later_expert_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fit_words: FitWords
) -> None:
    line = "start: closest: a later expert that starts from a past one takes its units"
    start = "--model.allocator.init_args.start"
    assert main(fit_words(tmp_path, start, "closest", verb="allocate")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert main(fit_words(tmp_path, start, "fresh", verb="allocate")) == 0
    assert line not in capsys.readouterr().out


# -- evaluate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_ranking_that_the_router_was_not_fitted_for_is_refused_before_any_answer(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    flags = ["--output", str(tmp_path / "again")]
    flags += ["--prompt", "why?"] if verb == "predict" else []
    ranking = ["--model.router.init_args.ranking", "likelihood"]
    assert main([verb, str(quick_run), *flags, *ranking]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dmole: ")]
    assert line.endswith("no covariance: fitted with another ranking than likelihood")
    assert "paint" in line
    assert not list(tmp_path.iterdir())


def answers(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("predictions/*.jsonl")
    }


def test_evaluate_computes_the_matrices_again_to_the_last_bit(
    quick_run: Path, evaluated: Path
) -> None:
    for name in MATRICES:
        assert (evaluated / name).read_text() == (quick_run / name).read_text()
    again, first = (
        json.loads((run / "metrics.json").read_text()) for run in (evaluated, quick_run)
    )
    assert again["routing"].pop("trained_with_partner") is None  # nothing was trained
    assert first["routing"].pop("trained_with_partner") is not None
    assert again == first
    tested = [row for row in read_csv(quick_run / "routing.csv") if row["phase"] == "test"]
    assert read_csv(evaluated / "routing.csv") == tested
    assert answers(evaluated) == answers(quick_run)


@pytest.mark.slow
def test_thresholds_of_zero_leave_the_base_model_alone(quick_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "base"
    words = ["--threshold_scale", "0", "--output", str(output)]
    assert main(["evaluate", str(quick_run), *words]) == 0
    assert {row["gate_set"] for row in read_csv(output / "routing.csv")} == {"base"}
    matrix, _ = read_matrix(output / "evaluation_matrix.csv")
    first, _ = read_matrix(quick_run / "evaluation_matrix.csv")
    assert (matrix == first[0]).all()


@pytest.mark.slow
def test_another_base_model_than_that_of_the_run_is_named_by_its_part(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "{size: {height: 64, width: 48}}"
    flags = [f"--model.backbone.init_args.image_settings={size}"]
    for words in (["evaluate", str(quick_run)], ["predict", str(quick_run), "--prompt", "why?"]):
        output = ["--output", str(tmp_path / words[0])]
        assert main([*words, *output, *flags]) == 1
        line = capsys.readouterr().err
        assert line == (
            f"dmole: {quick_run} was made with another image processor: size.width 64 -> 48; "
            "--trainer.accept_changes true uses it anyway\n"
        )
    assert main([*words, *output, *flags, "--trainer.accept_changes", "true"]) == 0


@pytest.mark.slow
def test_evaluate_can_look_at_the_training_samples(quick_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "train"
    words = ["--split", "train", "--output", str(output), "--data.eval_batch_size", "32"]
    assert main(["evaluate", str(quick_run), *words]) == 0
    counts = [int(row["count"]) for row in read_csv(output / "routing.csv") if row["stage"] == "2"]
    assert sum(counts) == 64
    line = read_stage(output, 2)["paint"][0]
    assert line["id"] == "paint-train-0-0"
    assert len(line["references"]) == 1


# -- predict -----------------------------------------------------------------------------------


def test_predict_answers_a_single_prompt(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(image)
    prompt = "name the paint on the square"
    assert main(["predict", str(quick_run), "--image", str(image), "--prompt", prompt]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["image"] == str(image)
    assert answer["prompt"] == prompt
    assert set(answer) == {"id", "image", "prompt", "prediction", "gate_set"}
    assert set(answer["gate_set"].split("+")) <= {"base", "paint", "count"}


def test_predict_gives_test_samples_the_answers_they_got_in_the_run(
    quick_run: Path, tmp_path: Path
) -> None:
    from dmole.data import Task, open_source

    task = Task("count", test="synthetic://count/test?size=8")
    samples = open_source(task, "test", tmp_path)
    prompts = []
    for sample in samples:
        sample.images[0].load().save(tmp_path / f"{sample.id}.png")
        prompts.append({"image": f"{sample.id}.png", "prompt": sample.prompt})
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    words = ["--input", str(tmp_path / "prompts.json"), "--output", str(tmp_path / "answers.json")]
    assert main(["predict", str(quick_run), *words, "--max_new_tokens", "4"]) == 0
    found = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    expected = read_stage(quick_run, 2)["count"]
    keys = ("prompt", "prediction", "gate_set")
    assert [[a[k] for k in keys] for a in found] == [[e[k] for k in keys] for e in expected]


def test_predict_answers_text_without_an_image(
    quick_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(quick_run), "--prompt", "how many ?"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["image"] is None
    assert isinstance(answer["prediction"], str)


# -- compare, data -----------------------------------------------------------------------------


def test_compare_makes_a_table_and_a_picture(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(quick_run), "--output", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "| small | 1 |" in table
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.md",
        "comparison.csv",
        "comparison.tex",
        "comparison.png",
        "learning.csv",
        "per_task.csv",
        "per_task.tex",
        "forgetting.png",
        "accuracy_parameters.png",
    }


@pytest.mark.parametrize(("flags", "tasks"), [([], 5), (["--alike"], 6)])
def test_make_example_writes_tasks_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], tasks: int
) -> None:
    pytest.importorskip("easy_vqa")
    pytest.importorskip("sklearn")
    folder = tmp_path / "real"
    words = ["--train_size", "4", "--test_size", "2"]
    assert main(["data", "make-example", str(folder), *words, *flags]) == 0
    names = capsys.readouterr().out.strip().partition(": ")[2].split(", ")
    assert len(names) == tasks
    for name in names:
        assert len(json.loads((folder / f"{name}_train.json").read_text())) == 4


# -- from Python -------------------------------------------------------------------------------


def test_module_data_and_trainer_need_no_command_line(plain_run: Path) -> None:
    # `plain_run` was made by `trainer.fit(module, datamodule=data)`
    assert (plain_run / "metrics.json").is_file()
    content = torch.load(plain_run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["done"][-1] == [2, "train"]


def test_a_predictor_called_twice_answers_each_prompt_by_itself(plain_run: Path) -> None:
    fresh = Recipe().build(plain_run / "unused")
    predictor = Predictor(fresh.module, fresh.data, plain_run)
    first, second = {"prompt": "name the paint on the star"}, {"prompt": "say how many there are"}
    predictor([first])
    twice = predictor([second])
    fresh = Recipe().build(plain_run / "unused")
    alone = Predictor(fresh.module, fresh.data, plain_run)([second])
    assert twice[0].pop("id") != alone[0].pop("id")  # ids are keys of embeddings
    assert twice == alone


@pytest.mark.slow
def test_a_run_with_a_trusted_class_is_checked_learned_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # a trusted module adds folders
    monkeypatch.chdir(tmp_path)
    source = "from dmole.metrics import ExactMatch\nclass Own(ExactMatch):\n    pass\n"
    Path("metric_of_a_user.py").write_text(source, encoding="utf-8")
    task = {"name": "count", "max_new_tokens": 3, "metric": {"class_path": "metric_of_a_user.Own"}}
    task |= {split: f"synthetic://count/{split}?size=4" for split in ("train", "test")}
    config = {
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": "runs"},
        "model": {
            "backbone": {"class_path": "dmole.models.PretrainedBackbone"},
            "allocator": {"class_path": "dmole.allocation.UniformAllocator"},
            "router": {"class_path": "dmole.routing.SharedRouter"},
        },
        "data": {"tasks": [task]},
    }
    Path("own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    trust = ["--trust_classes", "metric_of_a_user,no_figures"]
    run = "runs/dmole/version_0"
    for words in (
        ["data", "check", "--config", "own.yaml"],
        ["fit", "--config", "own.yaml", "--trainer.callbacks+=no_figures.NoFigures"],
        ["evaluate", run],
        ["predict", run, "--prompt", "what?"],
    ):
        assert main([*words, *trust]) == 0, capsys.readouterr().err
    matrix = "evaluation_matrix.csv"
    again = Path(run, "evaluation_test", matrix).read_text(encoding="utf-8")
    assert again == Path(run, matrix).read_text(encoding="utf-8")
    assert main(["evaluate", run, "--output", "other"]) == 1
    assert "--trust_classes metric_of_a_user" in capsys.readouterr().err
