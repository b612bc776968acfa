"""The verbs for a finished run: ``evaluate`` and ``predict``."""

from __future__ import annotations

import logging
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from dmole.callbacks.router_comparison import markdown
from dmole.cli.arguments import ArgumentParser
from dmole.cli.bundle import load_bundle, predict_with_bundle
from dmole.cli.lightning import ContinualCLI, build, configure_logging
from dmole.cli.trust import REMOTE_CODE_FLAG, sets_remote_code, take_trusted
from dmole.harness.vlmevalkit import BenchmarkTable, TableFormat, write_predictions
from dmole.inference.prompts import read_prompts
from dmole.inference.requests import Request
from dmole.messages import json_text, show
from dmole.predictor import Predictor
from dmole.routing.comparison import ALL, ROUTERS, router_names
from dmole.run.bundle import is_bundle
from dmole.run.loading import as_config
from dmole.run.model_file import CONFIG_FILE, read_run_settings
from dmole.run.schema import RunSettings
from dmole.storage.files import write_json
from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")

_OVERRIDES = (
    "Any setting of the run can be changed: --data.data_root DIR, --trainer.devices 2. "
    "--trust_classes MODULE lets the run use classes of your own module."
)


def run_evaluate(words: list[str]) -> None:
    """Compute the matrix of a finished run again."""
    configure_logging()
    parser = ArgumentParser("dmole evaluate", description=run_evaluate.__doc__, epilog=_OVERRIDES)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--split", default="test", choices=("test", "train"), help="which samples")
    parser.add_argument("--threshold_scale", type=float, help="factor on the router's thresholds")
    parser.add_argument(
        "--router",
        nargs="+",
        metavar="NAME",
        help=f"compare routers on the experts of the run: {', '.join((*ROUTERS, ALL))}",
    )
    parser.add_argument("--output", type=Path, help="folder for the results; must not exist")
    options, overrides = parser.parse_known_args(words)
    if options.router is not None:
        router_names(options.router)  # refuses unknown names before the base model is loaded
        if options.threshold_scale is not None:
            raise ValueError("--threshold_scale does not go with --router")
    overrides, trusted = take_trusted(overrides)
    settings = read_run_settings(options.run, trusted)
    config = as_config(settings)
    if options.split == "train":  # tasks that are only scored have no training samples
        config["data"]["tasks"] = [t for t in config["data"]["tasks"] if not t.get("eval_only")]
    for task in config["data"]["tasks"]:
        if not task.get(options.split) and not task.get("update"):  # may have no test files
            raise ValueError(f"task {task['name']!r} has no {options.split} files")
        task["test"] = task.get(options.split)
    scale = options.threshold_scale
    name = f"evaluation_{options.split}" + (f"_x{scale:g}" if scale is not None else "")
    cli = cli_of_run(settings, config, overrides, trusted)
    trainer = cast("ContinualTrainer", cli.trainer)
    if options.router is not None:
        output = options.output or options.run / f"routers_{options.split}"
        rows = trainer.compare_routers(
            cli.model, cli.datamodule, options.run, output, options.router
        )
        if trainer.is_global_zero:
            show(markdown(rows))
        log.info("results are in %s", output)
        return
    output = options.output or options.run / name
    trainer.evaluate(
        cli.model, cli.datamodule, run=options.run, output=output, threshold_scale=scale
    )
    log.info("results are in %s", output)


def run_predict(words: list[str]) -> None:
    """Answer prompts with the experts and the router of a run."""
    configure_logging()
    parser = ArgumentParser("dmole predict", description=run_predict.__doc__, epilog=_OVERRIDES)
    parser.add_argument(
        "run", type=Path, help="run folder, or bundle (then only --base is changed)"
    )
    parser.add_argument("--image", type=Path, help="image of a single prompt")
    parser.add_argument("--prompt", help="a single prompt")
    parser.add_argument(
        "--input", type=Path, help="JSON: a list of {image, prompt}; images relative to the file"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write instead of printing")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument(
        "--vlmevalkit",
        type=Path,
        metavar="FOLDER",
        help="with a .tsv as --input: write its rows with predictions as VLMEvalKit reads them",
    )
    parser.add_argument("--model_name", default="dmole", help="name of the model for VLMEvalKit")
    parser.add_argument("--xlsx", action="store_true", help="a workbook for VLMEvalKit, no .tsv")
    options, overrides = parser.parse_known_args(words)
    if options.vlmevalkit is not None or Path(options.input or "").suffix == ".tsv":
        show(str(predict_table(options, overrides)))
        return
    if (options.prompt is None) == (options.input is None):
        raise ValueError("predict needs either --prompt (and --image) or --input")
    if options.input is not None:
        prompts = read_prompts(options.input)
    else:
        prompts = [{"prompt": options.prompt, "image": options.image}]
    if is_bundle(options.run):
        answers = predict_with_bundle(options.run, prompts, options.max_new_tokens, overrides)
        _write_answers(answers, options.output)
        return
    _write_answers(
        predictor_of_run(options.run, overrides)(prompts, options.max_new_tokens), options.output
    )


def predict_table(options: Namespace, words: list[str]) -> Path:
    """Answer the rows of a table of VLMEvalKit; return the file with the predictions.

    Args:
        options: Flags of ``predict``.
        words: Flags over the settings of the run.

    Raises:
        ValueError: If the input is no ``.tsv`` file, a flag does not go with it, the folder is
            a file, or the table cannot be read.
    """
    if options.vlmevalkit is None:
        raise ValueError(f"{options.input} is a table of VLMEvalKit: name the --vlmevalkit FOLDER")
    if options.input is None or options.input.suffix != ".tsv":
        raise ValueError("--vlmevalkit needs a table of VLMEvalKit: --input NAME.tsv")
    for flag in ("prompt", "image", "output"):
        if getattr(options, flag) is not None:
            raise ValueError(f"--{flag} does not go with --vlmevalkit")
    if options.vlmevalkit.exists() and not options.vlmevalkit.is_dir():
        raise ValueError(f"--vlmevalkit {options.vlmevalkit} is no folder")
    most = options.max_new_tokens
    if is_bundle(options.run):
        model = load_bundle(options.run, words)
        table = BenchmarkTable(options.input, model.images)
        requests = (Request(s.turns, s.images, most) for s in table.samples())
        texts = [model.answer([request])[0].text for request in requests]
    else:
        predictor = predictor_of_run(options.run, words)
        table = BenchmarkTable(options.input, predictor.images)
        texts = [text for text, _ in predictor.answer(table.samples(), most)]
    kind: TableFormat = "xlsx" if options.xlsx else "tsv"
    return write_predictions(table, texts, options.vlmevalkit, model=options.model_name, kind=kind)


def predictor_of_run(run: Path, words: list[str]) -> Predictor:
    """Return what answers prompts with a run, at the precision of its matrix.

    Args:
        run: The run folder.
        words: Flags over its settings.
    """
    words, trusted = take_trusted(words)
    settings = read_run_settings(run, trusted)
    cli = cli_of_run(settings, as_config(settings), words, trusted)
    precision = cli.trainer.precision_plugin.forward_context
    accept = cast("ContinualTrainer", cli.trainer).sequence.accept_changes
    predictor = Predictor(cli.model, cli.datamodule, run, precision, accept)
    cli.model.to(cli.trainer.strategy.root_device)
    return predictor


def _write_answers(answers: list[dict[str, Any]], output: Path | None) -> None:
    if output is not None:
        write_json(output, answers)
    else:
        show(json_text(answers))


def cli_of_run(
    settings: RunSettings, config: dict[str, Any], overrides: list[str], trusted: Sequence[str]
) -> ContinualCLI:
    """Return trainer, module and data of a finished run, with flags over its settings.

    Args:
        settings: Settings of the run.
        config: The same in the form of a config.
        overrides: Flags.
        trusted: Modules outside dmole whose classes may be built.

    Raises:
        ValueError: If a setting or a flag is not valid, or the run sets ``trust_remote_code`` and
            no flag confirms it.
    """
    if settings.remote_code and not sets_remote_code(overrides):
        # the author of the run decided for their machine, not for this one
        raise ValueError(
            f"{settings.path} sets trust_remote_code, which runs code of its base model: confirm "
            f"it with {REMOTE_CODE_FLAG} true, or set it to false"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG_FILE
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        try:
            return build(["--config", str(path), *overrides], trusted, run=False)
        except ValueError as error:
            if overrides:  # a flag may be the cause
                raise
            raise ValueError(f"{settings.path}: {error}") from error
