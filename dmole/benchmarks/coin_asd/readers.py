"""Reader of ScienceQA in CoIN-ASD: the evaluation script asks for a letter."""

from __future__ import annotations

from dmole.benchmarks.coin.readers import scienceqa_items
from dmole.data.items import Numbered, SourceFiles

LETTER_REQUEST = "Answer with the option's letter from the given choices directly."


def asd_scienceqa_items(source: SourceFiles) -> Numbered:
    """Yield ScienceQA questions; test questions end in the request for a letter.

    Source:
        jinpeng0528/SEFE ``scripts/Eval/1_ScienceQA.sh`` (``--single-pred-prompt``) and
        ``model_science_qa.py``. A question that ends in the request already is left as it is.
    """
    for index, item in scienceqa_items(source):
        text = item.get("text")
        if source.split == "test" and isinstance(text, str) and LETTER_REQUEST not in text:
            item = item | {"text": f"{text.strip()}\n{LETTER_REQUEST}"}
        yield index, item
