"""Checks data files, images and token lengths before training."""

from dmole.doctor.base_model import BaseModel
from dmole.doctor.check import CheckOptions, DataReport, check_tasks
from dmole.doctor.findings import LEVELS, Finding
from dmole.doctor.report import as_json, as_text
from dmole.doctor.tokens import TokenLimit

__all__ = [
    "LEVELS",
    "BaseModel",
    "CheckOptions",
    "DataReport",
    "Finding",
    "TokenLimit",
    "as_json",
    "as_text",
    "check_tasks",
]
