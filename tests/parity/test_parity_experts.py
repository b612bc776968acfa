"""The routed layer against outputs and gradients recorded from the official code."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from recorded import Case, Tensors, load_cases, naming
from torch import Tensor, nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, Gates


def library_of(case: Case, tensors: Tensors) -> ExpertLibrary:
    """Return the experts of a case on one layer, of which the current task's trains."""
    base = nn.Linear(case["in_features"], case["out_features"], bias=case["bias"])
    base.weight.data = tensors["base_weight"]
    if case["bias"]:
        base.bias.data = tensors["base_bias"]
    library = ExpertLibrary(nn.ModuleDict({"base": base}), lambda _: "language")
    for task in case["expert_ids"]:
        # a scaling by the square root of the rank is another alpha
        library.add(str(task), {"base": case["r"]}, {"base": case["scaling"] * case["r"]})
        saved = {f"base.lora_{part.lower()}": tensors[f"{part}.{task}"] for part in "AB"}
        library.load_state_dict(str(task), saved)
    current = str(case["current_task"])
    library.train_only(current if current in library.names else None)
    return library


def check_gradient(parameter: Tensor, recorded: Case, official: Tensor | None, atol: float) -> None:
    assert parameter.requires_grad == recorded["requires_grad"]
    if recorded["has_grad"]:
        assert_close(parameter.grad, official, rtol=1e-5, atol=atol)
    elif parameter.requires_grad:  # ours stays in the graph, for distributed training
        assert parameter.grad is None or not parameter.grad.any()
    else:
        assert parameter.grad is None


def test_output_and_gradients_equal_the_official_ones(fixtures_dir: Path) -> None:
    for case, tensors in load_cases(fixtures_dir / "algo" / "dmole_linear.json"):
        # where the scaling is no power of two the recording is 2e-6 from the exact sum itself
        atol = 1e-6 if math.frexp(case["scaling"])[0] == 0.5 else 5e-6
        library = library_of(case, tensors)
        x = tensors["x"].clone().requires_grad_("grad_x" in tensors)
        active = [float(task in case["active_task_ids"]) for task in case["expert_ids"]]
        gates = Gates(library.names, torch.tensor([active]).expand(x.shape[0], -1))
        with naming(case):
            with library.context.use(gates):
                y = library.model.get_submodule("base")(x)
            assert_close(y, tensors["y"], rtol=1e-5, atol=atol)
            (y * tensors["grad_out"]).sum().backward()
            if "grad_x" in tensors:
                assert_close(x.grad, tensors["grad_x"], rtol=1e-5, atol=atol)
            for task in case["expert_ids"]:
                ((_, expert),) = library.experts(str(task))
                recorded = case["grads"][str(task)]
                for part, parameter in (("A", expert.lora_a), ("B", expert.lora_b)):
                    official = tensors.get(f"grad_{part}.{task}")
                    check_gradient(parameter, recorded, official, atol)
