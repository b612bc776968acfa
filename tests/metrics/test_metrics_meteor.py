from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path

import pytest

from dmole.benchmarks.registry import build_metric
from dmole.benchmarks.ucit.captions import UCITCaption
from dmole.metrics import METEOR
from dmole.metrics.meteor import meteor

# speaks the program's protocol: counts per question, then one score each and that of the set
PROGRAM = f"""#!{sys.executable}
import os, sys
with open(os.environ["METEOR_LOG"], "a", buffering=1) as log:
    log.write("start " + " ".join(sys.argv[1:]) + "\\n")
    for line in sys.stdin:
        head, *fields = line.rstrip("\\n").split(" ||| ")
        if head == "SCORE":
            print(len(fields), fields[-1] in fields[:-1], flush=True)
            log.write(line)
        else:
            for field in fields:
                print(1.0 if field.endswith("True") else 0.25)
            print(0.5, flush=True)
"""


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "java"
    program.write_text(PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("METEOR_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def test_one_process_scores_the_set_and_ends(fake_java: Path) -> None:
    value, per_sample = meteor(["a cat", "a ||| \ud800 b"], [["a dog", "a cat"], ["x"]])
    assert (value, per_sample) == (0.5, [1.0, 0.25])
    lines = fake_java.read_text().splitlines()
    assert lines[0].startswith("start -Xmx2G -jar meteor-1.5.jar")
    assert lines[1:] == ["SCORE ||| a dog ||| a cat ||| a cat", "SCORE ||| x ||| a ? b"]


def test_a_program_that_ends_early_is_an_error(
    fake_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_java.parent / "java").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ValueError, match=r"METEOR (ended early on 1 texts|answered '')"):
        meteor(["a"], [["a"]])


def test_the_mean_of_seven_is_published_and_cider_corrected(fake_java: Path) -> None:
    texts = ["a red cat sits here", "two dogs run very fast"]
    score = UCITCaption("python").score(texts, [[text] for text in texts])
    assert score.details["meteor"] == 50.0
    # BLEU, ROUGE-L and CIDEr are perfect
    assert score.value == pytest.approx((4 * 100 + 100 + 1000 + 50) / 7)
    assert score.per_sample == pytest.approx([(4 * 100 + 100 + 1000 + 100) / 7] * 2)
    assert score.profiles["corrected"].value == pytest.approx(1000.0)
    assert score.details["tokenizer"] == "python"


def test_without_java_meteor_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for name in ("meteor", "ucit_caption", "ucit_caption:published"):
        with pytest.raises(ValueError, match="METEOR needs a Java runtime, but no `java`"):
            build_metric(name)
    with pytest.raises(ValueError, match="METEOR needs a Java runtime"):
        METEOR("python")


def test_without_java_captions_of_ucit_have_a_corrected_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    texts = ["a red cat sits here", "two dogs run very fast"]
    score = build_metric("ucit_caption", "corrected").score(texts, [[text] for text in texts])
    assert score.value == pytest.approx(1000.0)
    assert list(score.profiles) == ["corrected"]
    assert score.details["tokenizer"] == "python"
    assert str(score.details["published"]).startswith("not computed: METEOR needs")


def test_bleu_and_rouge_of_equal_captions_are_full_and_name_their_tokenizer() -> None:
    for name in ("bleu_4", "rouge_l"):
        metric = type(build_metric(name))("python")  # type: ignore[call-arg]
        score = metric.score(["a red cat sits here"], [["A red cat sits here."]])
        assert score.value == pytest.approx(100.0)
        assert score.details == {"missing": 0, "unparsable": 0, "tokenizer": "python"}
