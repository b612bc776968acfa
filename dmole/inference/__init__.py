"""Use of a finished run without Lightning: load it, route prompts, answer them."""

from dmole.inference.answering import AnsweringModel
from dmole.inference.loading import load
from dmole.inference.model import RoutedModel
from dmole.inference.requests import Answer, Request, Route, make_request
from dmole.inference.residency import ExpertResidency

__all__ = [
    "Answer",
    "AnsweringModel",
    "ExpertResidency",
    "Request",
    "Route",
    "RoutedModel",
    "load",
    "make_request",
]
