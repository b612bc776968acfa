"""Agreement of the Python tokenizer with the Java tokenizer of COCO evaluation, and of CIDEr.

Captions are drawn randomly from a seed: plain ones, and ones with punctuation, numbers,
contractions, brackets, abbreviations and letters of many scripts. Needs Java.

    python -m experiments.tokenizer_parity [--size 3000] [--seed 0] [--show 20]
"""

# ruff: noqa: RUF001 - the unusual quotes and dashes are what is measured
from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from dmole.metrics.captions import cider_of_tokens
from dmole.metrics.tokenizers import tokenize_ptb
from dmole.metrics.treebank import tokenize_python

SUBJECTS = "man woman dog cat|two children|a group of people|an old bus|three zebras|the player"
VERBS = "sits stands runs is holding|are looking at|walks past|rides|plays with|is parked next to"
OBJECTS = "table bench red ball|a half-eaten sandwich|an umbrella|the tennis court|a street sign"
PLACES = "in the park|on a beach|at night|near the ocean|in front of a building|by the window"
CURIOUS = """
can't|don't|isn't|won't|it's|he's|they're|I'm|we've|she'd|you'll|boy's|dogs'|o'clock|James's|cannot
gonna|wanna|gotta|lemme|'tis|'90s|rock 'n' roll|d'you|y'all|ain't|couldn't've
5|12|3.5|1,000|10:30|$5.00|50%|1/2|2nd|21st|1990s|#1|#42|5'10"|6x9|3-4|747|24/7|1.2.3|.5|€20|£3|№ 5
U.S.|a.m.|p.m.|Mr. Smith|Dr. Lee|St. Mary|e.g.|i.e.|etc.|vs.|No. 5|J. K.|Inc.|Ave.|A.B.C.|ft.|Jr.
(left)|[sign]|{x}|"STOP"|'stop'|`code`|``quoted''|“smart”|‘single’|it’s|don’t|«non»|a/b|and/or|w/
!|!!!|?|?!|...|..|…|--|---|-|—|–|;|:|,|*|&|+|=|@|#|%|~|^|_|<|>|/|\\|
half-eaten|t-shirt|black-and-white|twenty-five|x-ray|wi-fi|e-mail|-dog|dog-|A-B-C|coca-cola
café|naïve|Zürich|straße|São Paulo|Москва|東京|日本語|你好
ñandú|Ελλάδα|İstanbul|👍|❤|½ cup|30°|2²|™|©
www.example.com|http://a.b/c|me@x.org|@user|#tag|AT&T|H&M|B&W|R2-D2|iPhone6|3D|PS4|HD|7-eleven|mp3
""".replace("\n", "|").split("|")
ENDINGS = ["", ".", ".", ".", " .", "!", "?", "...", ";", ",", "\n", "  "]


def captions(size: int, seed: int, share: float = 0.5) -> list[str]:
    """Return captions, a share of them with unusual words or punctuation.

    Args:
        size: Number of captions.
        seed: Seed of the choice.
        share: Share of the unusual captions, in 0..1.
    """
    rng = random.Random(seed)
    return [_caption(rng, rng.random() < share) for _ in range(size)]


def _caption(rng: random.Random, curious: bool) -> str:
    parts = [rng.choice(words.split("|")) for words in (SUBJECTS, VERBS, OBJECTS, PLACES)]
    words = " ".join(["a", *parts]).split()
    for _ in range(rng.choice([1, 1, 2, 3]) if curious else 0):
        position, extra = rng.randrange(len(words) + 1), rng.choice(CURIOUS)
        if position and rng.random() < 0.3:
            words[position - 1] += extra  # without a space before it
        else:
            words.insert(position, extra)
    text = " ".join(words)
    case = rng.random()
    text = text.upper() if case < 0.05 else text.capitalize() if case < 0.7 else text
    return text + rng.choice(ENDINGS)


def agreement(texts: Sequence[str]) -> tuple[float, list[tuple[str, str, str]]]:
    """Return the share of texts that both tokenizers split equally, and the other texts.

    Returns:
        The share in 0..1; (text, split by Java, split by Python) of each other text.
    """
    pairs = zip(texts, tokenize_ptb(texts), map(tokenize_python, texts), strict=True)
    others = [(text, java, python) for text, java, python in pairs if java != python]
    return 1.0 - len(others) / len(texts), others


def cider_of_both(texts: Sequence[str], seed: int) -> tuple[float, float]:
    """Return CIDEr x 100 by Java and by Python, of captions that lack a word of their reference."""
    rng = random.Random(seed)
    predictions = []
    for text in texts:
        words = text.split()
        words.pop(rng.randrange(len(words)))
        predictions.append(" ".join(words))
    values = []
    for tokens in (
        tokenize_ptb([*predictions, *texts]),
        [tokenize_python(text) for text in [*predictions, *texts]],
    ):
        references = [[text] for text in tokens[len(texts) :]]
        values.append(100.0 * cider_of_tokens(tokens[: len(texts)], references)[0])
    return values[0], values[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=10, help="differing captions to print")
    options = parser.parse_args()
    for name, share in (("plain", 0.0), ("unusual", 1.0)):
        texts = captions(options.size, options.seed, share)
        rate, others = agreement(texts)
        java, python = cider_of_both(texts, options.seed)
        print(f"{name:<8} {len(texts)} captions  split equally {100 * rate:.2f} %  ", end="")
        print(f"CIDEr x 100: Java {java:.2f}, Python {python:.2f}, ", end="")
        print(f"difference {python - java:+.2f}")
        for text, first, second in others[: options.show]:
            print(f"    {text!r}\n      Java   {first!r}\n      Python {second!r}")


if __name__ == "__main__":
    main()
