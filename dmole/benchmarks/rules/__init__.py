"""The scoring rules of the benchmarks by name, each with its published and corrected form."""

from dmole.benchmarks.rules.choice import MULTICHOICE, SCIENCEQA
from dmole.benchmarks.rules.coin import GQA, IMAGENET, OCRVQA, TEXTVQA, VIZWIZ, VQAV2
from dmole.benchmarks.rules.dmole_nine import EXACT, VIZWIZ_SOFT
from dmole.benchmarks.rules.grounding import COIN_GROUNDING, COIN_GROUNDING_REGEX, SKVG
from dmole.benchmarks.rules.mllm_dcl import FIN, MED, RS_AD, SCI, UCIT_EXACT
from dmole.benchmarks.rules.rule import Judge, Rule
from dmole.benchmarks.rules.text_distance import ANLS, ANLS_UNCUT, RELAXED

RULES: dict[str, Rule] = {
    "anls": ANLS,
    "anls_uncut": ANLS_UNCUT,
    "coin_gqa": GQA,
    "coin_grounding": COIN_GROUNDING,
    "coin_grounding_regex": COIN_GROUNDING_REGEX,
    "coin_imagenet": IMAGENET,
    "coin_ocrvqa": OCRVQA,
    "coin_scienceqa": SCIENCEQA,
    "coin_textvqa": TEXTVQA,
    "coin_vizwiz": VIZWIZ,
    "coin_vqav2": VQAV2,
    "dmole_exact": EXACT,
    "dmole_grounding": SKVG,
    "dmole_multichoice": MULTICHOICE,
    "dmole_vizwiz": VIZWIZ_SOFT,
    "mllm_dcl_ad": RS_AD,
    "mllm_dcl_fin": FIN,
    "mllm_dcl_med": MED,
    "mllm_dcl_rs": RS_AD,
    "mllm_dcl_sci": SCI,
    "relaxed_accuracy": RELAXED,
    "ucit_exact": UCIT_EXACT,
}

__all__ = ["RULES", "Judge", "Rule"]
