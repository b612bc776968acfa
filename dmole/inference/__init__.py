"""Use of a finished run without Lightning: load it, route prompts, answer them."""

from dmole.inference.loading import load
from dmole.inference.model import Route, RoutedModel
from dmole.inference.requests import Answer, Request, make_request

__all__ = ["Answer", "Request", "Route", "RoutedModel", "load", "make_request"]
