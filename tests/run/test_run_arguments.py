"""Arguments of the trainer that would fail late or with a traceback are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from dmole.run import arguments
from dmole.run.arguments import check_arguments, check_devices, check_launched

ALLOWED = {
    "devices": "auto", "num_nodes": 1, "accumulate_grad_batches": 1, "gradient_clip_val": 1.0,
    "limit_train_batches": 0.5, "log_every_n_steps": 0, "version": 0, "max_steps": -1,
    "overfit_batches": 0.0, "precision": "bf16-mixed", "min_epochs": None, "name": "group/run",
}  # fmt: skip


def test_usual_arguments_are_accepted() -> None:
    check_arguments(ALLOWED)
    check_arguments(dict.fromkeys(ALLOWED) | {"name": "run"})


@pytest.mark.parametrize(
    ("name", "value", "rest"),
    [
        ("num_nodes", 0, "must be at least 1, got 0"),
        ("accumulate_grad_batches", 0, "must be at least 1, got 0"),
        ("accumulate_grad_batches", -3, "must be at least 1, got -3"),
        ("gradient_clip_val", -0.1, "must be at least 0.0, got -0.1"),
        ("gradient_clip_val", float("nan"), "must be at least 0.0, got nan"),
        ("gradient_clip_val", float("inf"), "must be at least 0.0, got inf"),
        ("limit_train_batches", -1, "must be at least 0, got -1"),
        ("log_every_n_steps", -1, "must be at least 0, got -1"),
        ("version", -3, "must be at least 0, got -3"),
        ("name", "", "must name a folder in default_root_dir, got ''"),
        ("name", "../x", "must name a folder in default_root_dir, got '../x'"),
        ("name", "/x", "must name a folder in default_root_dir, got '/x'"),
        ("max_steps", 5, "cuts stages short"),
        ("overfit_batches", 0.5, "cuts stages short"),
        ("max_time", "00:01:00:00", "cuts stages short"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any, rest: str) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.{name} {rest}"):
        check_arguments(ALLOWED | {name: value})


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (-3, "at least 1 on the CPU, got -3"),
        (-1, "at least 1 on the CPU, got -1"),
        ("0", "at least 1 on the CPU, got '0'"),
        ("", "auto, a number or a list of numbers, got ''"),
        ("two", "auto, a number or a list of numbers, got 'two'"),
        ("0.5", "auto, a number or a list of numbers, got '0.5'"),
        ("1,2", "lists GPUs, the CPU takes a number, got '1,2'"),
        ([], r"lists GPUs, the CPU takes a number, got \[\]"),
        (99999, "at most 8 on this CPU, got 99999"),
    ],
)
def test_what_the_cpu_has_not_is_refused(
    devices: Any, message: str, accelerator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "_has_accelerator", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(ValueError, match=rf"^trainer\.devices .*{message}"):
        check_devices(devices, accelerator)


@pytest.mark.parametrize("devices", ["1", 8, "auto", None])
def test_numbers_of_processes_are_accepted_on_the_cpu(devices: Any) -> None:
    check_devices(devices, "cpu")


@pytest.mark.parametrize(
    ("devices", "valid"),
    [("0,1", True), ([3], True), (-1, True), ("2,", True), (64, True), ("auto", True),
     (0, False), (-3, False), ("1,1", False), ([-1, 0], False), ([], False), ("x", False)],
)  # fmt: skip
def test_gpus_are_a_number_or_a_list(devices: Any, valid: bool) -> None:
    if valid:
        check_devices(devices, "gpu")
        return
    with pytest.raises(ValueError, match=r"^trainer\.devices must"):
        check_devices(devices, "gpu")


def test_the_processes_of_torchrun_must_be_those_of_the_trainer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    check_launched(1, 1)  # the variable of another program
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    check_launched(2, 2)
    with pytest.raises(ValueError, match=r"started 4 processes, but trainer\.devices 1 and"):
        check_launched(1, 1)
