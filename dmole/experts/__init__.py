"""Low-rank experts: the routed linear, the library of all experts, the gates."""

from dmole.experts.expert import LoRAExpert
from dmole.experts.export import load_expert, save_expert
from dmole.experts.gates import GateContext, Gates
from dmole.experts.library import ExpertLibrary
from dmole.experts.lora import RoutedLinear
from dmole.experts.shape import ExpertShape

__all__ = [
    "ExpertLibrary",
    "ExpertShape",
    "GateContext",
    "Gates",
    "LoRAExpert",
    "RoutedLinear",
    "load_expert",
    "save_expert",
]
