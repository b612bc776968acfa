"""The benchmarks that the tests run, one row each. A new benchmark needs a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dmole.data.sample import Sample

Answer = Callable[[Sample], str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the tests expect of a benchmark.

    Args:
        name: Its name.
        tasks: How many tasks its config has.
        formats: The formats it gives.
        metrics: The metrics it gives.
        added: Whether its tasks are added after those of another benchmark.
        needs_java: Whether its published scores need Java.
        test_items: Test items in the miniature of a task, where they are not four.
        right_answers: What a model has to answer for full marks in the published profile, by task,
            where it is not the most frequent reference.
    """

    name: str
    tasks: int
    formats: frozenset[str] = frozenset()
    metrics: frozenset[str] = frozenset()
    added: bool = False
    needs_java: bool = False
    test_items: Mapping[str, int] = field(default_factory=dict)
    right_answers: Mapping[str, Answer] = field(default_factory=dict)


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def box_in_thousandths(sample: Sample) -> str:
    """Return the box of SK-VG as a model writes it; that of the file is in pixels."""
    (width, height), box = sample.metadata["size"], [3, 6, 19, 26]
    assert sample.references[0].startswith(str(box))
    sides = [width, height] * 2
    return str([round(1000 * value / side) for value, side in zip(box, sides, strict=True)])


ROWS = (
    Row(
        name="coin",
        tasks=8,
        formats=names("coin gqa scienceqa textvqa"),
        metrics=names(
            "coin_gqa coin_grounding coin_grounding_regex coin_imagenet coin_ocrvqa "
            "coin_scienceqa coin_textvqa coin_vizwiz coin_vqav2"
        ),
        # the published rule drops the last character of an answer
        right_answers={"Grounding": lambda sample: "[0.10, 0.20, 0.60, 0.80]"},
    ),
    Row(
        name="cvit",
        tasks=6,
        metrics=names("cvit_caption cvit_gqa cvit_imagenet cvit_scienceqa cvit_textvqa cvit_vqav2"),
    ),
    Row(name="ucit", tasks=6, metrics=names("ucit_caption ucit_exact"), needs_java=True),
    Row(
        name="coin_asd",
        tasks=8,
        formats=names("coin_asd_scienceqa"),
        metrics=names("coin_asd_scienceqa"),
        # the published rule drops the last character of an answer
        right_answers={"Grounding": lambda sample: "[0.10, 0.20, 0.60, 0.80]"},
    ),
    Row(
        name="mllm_acl",
        tasks=4,
        formats=names("mathvista mmt_gui"),
        metrics=names("mllm_acl_app mllm_acl_math mllm_acl_ocr mllm_acl_vp"),
    ),
    Row(
        name="mllm_dcl",
        tasks=5,
        metrics=names("mllm_dcl_ad mllm_dcl_fin mllm_dcl_med mllm_dcl_rs mllm_dcl_sci"),
    ),
    Row(
        name="cmit",
        tasks=9,
        formats=names("choices coco_captions skvg vizwiz"),
        metrics=names(
            "dmole_exact dmole_grounding dmole_multichoice dmole_multichoice_batch dmole_vizwiz"
        ),
        right_answers={"SK-VG": box_in_thousandths},
    ),
    Row(name="trigap", tasks=10, metrics=names("trigap_anls")),
    Row(
        name="retention",
        tasks=5,
        formats=names("mme mmmu pope"),
        metrics=names("mme mmmu pope"),
        added=True,
        test_items={"MME": 8},
        right_answers={"MME": lambda sample: sample.references[0].split()[0]},
    ),
)
"""The rows, in the order of the papers."""

LEARNED = tuple(row for row in ROWS if not row.added)
"""The benchmarks that a model is trained on."""

ADDED = tuple(row for row in ROWS if row.added)
"""The benchmarks whose tasks are added after those of another one."""
