"""The metric of CVIT's captions: Flickr30k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dmole.benchmarks.metrics import Details, ProfiledMetric
from dmole.benchmarks.shared.forms import obedience
from dmole.metrics.base import PROFILES, Profile, ProfileScore, ScoringItem
from dmole.metrics.captions import (
    cider_of_tokens,
    count_wordless,
    score_tokens,
    tokenize_captions,
)
from dmole.metrics.tokenizers import resolve_tokenizer


def best_reference(prediction: str, references: Sequence[str]) -> str:
    """Return the reference with the highest CIDEr to a caption, in a set of these pairs alone.

    The first one counts where several are best.

    Args:
        prediction: The caption, words separated by spaces.
        references: The accepted captions, words separated by spaces.

    Example:
        >>> best_reference("a red dog", ["it is night", "a red dog runs", "two cats"])
        'a red dog runs'
    """
    _, scores = cider_of_tokens([prediction] * len(references), [[text] for text in references])
    return references[scores.index(max(scores))]


def flattering_cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Return CIDEr (0..10) of the set and of each caption as in SMoLoRA.

    For each caption the best reference is chosen; then the chosen references are scored as if they
    were the predictions and the captions their references. Words are separated by spaces alone.

    Args:
        predictions: One caption per sample.
        references: Accepted captions per sample.
    """
    texts = [" ".join(text.split()) for text in predictions]
    accepted = [[" ".join(text.split()) for text in each] for each in references]
    chosen = [best_reference(*pair) for pair in zip(texts, accepted, strict=True)]
    return cider_of_tokens(chosen, [[text] for text in texts])


class CVITCaption(ProfiledMetric):
    """Captions of CVIT: Flickr30k.

    The published score is that of `flattering_cider` x 100; samples without an answer are left
    out. The corrected score is CIDEr x 100 with all references, as in COCO evaluation. The details
    hold the name of the tokenizer of the corrected score and the share of the captions that are
    sentences (``obedient``, percent).

    Args:
        tokenizer: Tokenizer of the corrected score: "ptb" (Java), "python", or "auto", which is
            "ptb" if Java is on the path.
        profile: The reported profile.

    Raises:
        ValueError: If an option is unknown, or the tokenizer needs Java and Java is missing.

    Source:
        SMoLoRA, llava/eval/SMoLoRA/Eval/eval_flickr30k_cider.py, eval_caption_instruction.py.
    """

    def __init__(
        self,
        tokenizer: Literal["auto", "ptb", "python"] = "auto",
        profile: Profile = "published",
    ) -> None:
        super().__init__(profile)
        self.tokenizer_name = resolve_tokenizer(tokenizer)

    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        texts, references = [item.text for item in items], [item.references for item in items]
        predicted, accepted = tokenize_captions(texts, references, self.tokenizer_name)
        value, per_sample = score_tokens(predicted, accepted, ("cider",))["cider"]
        corrected = ProfileScore(100.0 * value, [100.0 * score for score in per_sample])
        wordless = count_wordless([item.prediction for item in items], predicted)
        details: Details = {"tokenizer": self.tokenizer_name}
        details |= {f"unparsable_{profile}": wordless for profile in PROFILES}
        details |= obedience(items, "sentence", self.profile, skips=True)
        return {"published": _published(items), "corrected": corrected}, details


def _published(items: Sequence[ScoringItem]) -> ProfileScore:
    """Return the published score; samples without an answer have 0 and are left out of the set."""
    answered = [index for index, item in enumerate(items) if item.prediction is not None]
    per_sample = [0.0] * len(items)
    if not answered:
        return ProfileScore(0.0, per_sample)
    texts = [items[index].text for index in answered]
    value, scores = flattering_cider(texts, [items[index].references for index in answered])
    for index, score in zip(answered, scores, strict=True):
        per_sample[index] = 100.0 * score
    return ProfileScore(100.0 * value, per_sample)
