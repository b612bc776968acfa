"""What TensorBoard shows of a stage besides scores and figures; its size per stage is bounded."""

from __future__ import annotations

import math
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from dmole.callbacks.evaluation_matrix import EXAMPLES, EvaluationMatrix
from dmole.callbacks.evaluation_results import task_experts
from dmole.callbacks.run_figures import loss_ratios
from dmole.experts.library import eval_mode
from dmole.experts.norms import update_norms
from dmole.messages import excerpt
from dmole.metrics.routing_rates import activation_shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

MOST_CASES = 20
"""Tasks with case studies; of more tasks every n-th has them."""

MOST_WEIGHTS = 10_000
"""Weights of tokens in a histogram."""

_LONGEST = 160  # characters of a text in a case study
_CASE_COLUMNS = ("id", "prompt", "references", "prediction", "score", "gate_set")


def activation_scalars(state: SequenceState, module: ContinualModule) -> dict[str, float]:
    """Return the shares of `dmole.metrics.routing_rates.activation_shares`, in percent.

    Returns:
        Four values for each learned task with test samples, keyed ``activation/<kind>/<task>``.
    """
    table, stage = state.callback_of(EvaluationMatrix), state.stage
    owner = task_experts(state, module.router)
    shares = activation_shares(table.routing, stage.index, owner, stage.common)
    return {
        f"activation/{kind}/{task}": value
        for task, kinds in shares.items()
        for kind, value in kinds.items()
    }


def stage_histograms(state: SequenceState, module: ContinualModule) -> dict[str, list[float]]:
    """Return the values of the histograms after a stage, by tag.

    ``expert_norm/<modality>`` are the norms of the updates of the stage's expert, one for each
    linear; ``common_expert_norm/<modality>`` are those of the expert that all stages share.
    ``gates/own`` and ``gates/other`` are the losses of the test samples under the autoencoders of
    their own and of other tasks, by the threshold, as decimal logarithm: below 0 the gate opens.
    ``gates/token_weights`` are the weights of experts that are mixed token by token.
    """
    values: dict[str, list[float]] = {}
    for name in state.stage.experts:
        group = "common_expert_norm" if name == state.stage.common else "expert_norm"
        for modality, norms in update_norms(module.library, name).items():
            values[f"{group}/{modality}"] = norms
    for ratios in loss_ratios(state, module).values():
        for side, losses in zip(("own", "other"), ratios, strict=True):
            found = values.setdefault(f"gates/{side}", [])
            found += [math.log10(loss) for loss in losses if 0 < loss < math.inf]
    values["gates/token_weights"] = token_weights(state, module)
    return {tag: each for tag, each in values.items() if each}


@torch.no_grad()
def token_weights(state: SequenceState, module: ContinualModule) -> list[float]:
    """Return weights of experts that are mixed token by token, for a few prompts of learned tasks.

    Args:
        state: Has the test samples and the device.
        module: Has the router, whose experts are mixed.

    Returns:
        At most `MOST_WEIGHTS` values of all linears and tokens; none if the gates decide alone.
    """
    tested = state.data.tested_task_names
    tasks = [task for task in state.seen_tasks() if task in tested][-MOST_CASES:]
    if module.router.mixing is None or not tasks:
        return []
    samples = {task: islice(state.data.test_samples(task), EXAMPLES) for task in tasks}
    pairs = [(sample, task) for task, own in samples.items() for sample in own]
    found: list[Tensor] = []
    module.to(state.device)
    with eval_mode(module.backbone):
        for host in state.data.embedding_loader(pairs, generation=True, shard=False):
            batch = move_data_to_device(host, state.device)
            gates = module.make_gates(module.route(batch).gates, batch, recording=True)
            with module.library.context.use(gates):
                module.backbone.outputs(batch.inputs)
            records = gates.records if gates is not None else []
            found += [record.weights.float().flatten().cpu() for record in records]
    weights = torch.cat(found) if found else torch.empty(0)
    every = math.ceil(len(weights) / MOST_WEIGHTS) or 1
    values: list[float] = weights[::every].tolist()
    return values


def case_texts(state: SequenceState) -> dict[str, str]:
    """Return the first test samples of each task with their answers, as tables of Markdown.

    Returns:
        Texts by tag, ``cases/<task>``. They hold no Markdown, HTML or link of the data.
    """
    examples = state.callback_of(EvaluationMatrix).examples
    every = math.ceil(len(examples) / MOST_CASES) or 1
    return {f"cases/{task}": _table(examples[task]) for task in list(examples)[::every]}


def _table(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return lines of a file of predictions as a table of Markdown."""
    rows = [
        "| " + " | ".join(column.replace("_", " ") for column in _CASE_COLUMNS) + " |",
        "|---" * len(_CASE_COLUMNS) + "|",
    ]
    for line in lines:
        cells = (literal(_shown(line[column])) for column in _CASE_COLUMNS)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    """Return a value of a prediction as a short text of one line."""
    if isinstance(value, float):
        return f"{value:.1f}"
    text = " / ".join(map(str, value)) if isinstance(value, list) else str(value)
    return excerpt(text, _LONGEST, quote=False)


def literal(text: str) -> str:
    """Return a text that Markdown and HTML show as it is.

    Example:
        >>> literal("a|b")
        'a&#124;b'
    """
    return re.sub(r"[!-/:-@\[-`{-~]", lambda mark: f"&#{ord(mark[0])};", text)
