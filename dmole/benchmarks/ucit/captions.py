"""The metric of UCIT's captions: VizWiz-cap and Flickr30k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dmole.benchmarks.metrics import Details, ProfiledMetric
from dmole.metrics.base import (
    PROFILES,
    Profile,
    ProfileScore,
    ScoringItem,
)
from dmole.metrics.captions import SetScore, count_wordless, score_tokens, tokenize_captions
from dmole.metrics.meteor import meteor_missing, require_meteor
from dmole.metrics.tokenizers import resolve_tokenizer


class UCITCaption(ProfiledMetric):
    """Captions of UCIT: VizWiz-cap and Flickr30k.

    The published score is the plain mean of BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr, each
    x 100, with answers and references paired by position. The corrected score is CIDEr x 100, as
    in COCO evaluation, paired by id: a mean of different scales is dominated by CIDEr anyway. The
    details hold all seven figures and the name of the tokenizer. The published score of a sample
    is the mean of its seven figures; BLEU and METEOR of a set are not means over samples. Captions
    in which the tokenizer finds no word count as unreadable.

    Args:
        tokenizer: "ptb" (Java), "python", or "auto", which is "ptb" if Java is on the path.
        profile: The reported profile. Without Java there is no METEOR and so no published score;
            only the corrected one is then computed.

    Raises:
        ValueError: If the published profile is selected without Java on the path, or an option is
            unknown.

    Source:
        MCITlib, LoRA-FT/llava/eval/CoIN/eval_caption.py.
    """

    pairing = "position"

    def __init__(
        self,
        tokenizer: Literal["auto", "ptb", "python"] = "auto",
        profile: Profile = "published",
    ) -> None:
        super().__init__(profile)
        self.tokenizer_name = resolve_tokenizer(tokenizer)
        if profile == "published":
            require_meteor()

    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        missing = meteor_missing()
        names = ("bleu", "rouge_l", "cider") if missing else ("bleu", "meteor", "rouge_l", "cider")
        texts, references = [item.text for item in items], [item.references for item in items]
        predicted, accepted = tokenize_captions(texts, references, self.tokenizer_name)
        scores = score_tokens(predicted, accepted, names)
        wordless = count_wordless([item.prediction for item in items], predicted)
        details: Details = {"tokenizer": self.tokenizer_name}
        details |= {f"unparsable_{profile}": wordless for profile in PROFILES}
        details |= {name: 100.0 * value for name, (value, _) in scores.items()}
        profiles = {"corrected": _percent(scores["cider"])}
        if missing:
            details["published"] = f"not computed: {missing}"
        else:
            each = [_percent(score) for score in scores.values()]
            columns = zip(*(score.per_sample for score in each), strict=True)
            profiles["published"] = ProfileScore(
                sum(score.value for score in each) / len(each),
                [sum(column) / len(each) for column in columns],
            )
        return profiles, details


def _percent(score: SetScore) -> ProfileScore:
    value, per_sample = score
    return ProfileScore(100.0 * value, [100.0 * each for each in per_sample])
