"""The verb ``watch``: routes prompts in order and reports tasks that no expert has learned."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.cli.arguments import ArgumentParser, check_device
from dmole.messages import json_text, one_line, show
from dmole.rejections import Alarm, RejectionWindow

if TYPE_CHECKING:
    from dmole.inference import Route, RoutedModel

ALARMED = 3
"""Exit status if an unseen task was reported."""
STDIN = "-"
"""Value of ``--input`` for standard input."""


@dataclass
class Watch:
    """Counts routed samples and their alarms.

    Args:
        window: Counts the rejected samples.
        samples: Samples so far.
        rejected: Positions of the rejected samples, from 1.
        gate_sets: Samples by gate set.
        alarms: The alarms in plain form.
    """

    window: RejectionWindow
    samples: int = 0
    rejected: list[int] = field(default_factory=list)
    gate_sets: Counter[str] = field(default_factory=Counter)
    alarms: list[dict[str, Any]] = field(default_factory=list)

    def add(self, route: Route) -> dict[str, Any] | None:
        """Take the route of the next sample; return an alarm in plain form if it raises one."""
        self.samples += 1
        self.gate_sets["+".join(route.experts) or "base"] += 1
        accepted = any(loss < route.thresholds[name] for name, loss in route.losses.items())
        if not accepted:
            self.rejected.append(self.samples)
        alarm = self.window.add(not accepted)
        if alarm is None:
            return None
        self.alarms.append(self._plain(alarm))
        return self.alarms[-1]

    def _plain(self, alarm: Alarm) -> dict[str, Any]:
        since = self.samples - alarm.length + 1
        return {
            "position": self.samples,
            "since": since,
            "rejected_in_window": alarm.rejected,
            "window": alarm.window,
            "share": alarm.share,
            "samples": [position for position in self.rejected if position >= since],
        }

    def summary(self) -> dict[str, Any]:
        """Return the counts so far in plain form."""
        return {
            "samples": self.samples,
            "rejected": len(self.rejected),
            "share_rejected": len(self.rejected) / self.samples if self.samples else None,
            "gate_sets": dict(self.gate_sets.most_common()),
            "alarms": len(self.alarms),
        }


def run_watch(words: list[str]) -> int:
    """Route prompts in order and report unseen tasks.

    Returns:
        0, or `ALARMED` if an unseen task was reported.

    Raises:
        ValueError: If the command line, the run or a prompt is not valid.
    """
    from dmole.cli.trust import take_trusted

    words, trusted = take_trusted(words)
    parser = _parser()
    options = parser.parse_args(words)
    watch = Watch(RejectionWindow(options.window, options.limit))
    live = str(options.input) == STDIN
    size = options.batch_size or (1 if live else 16)
    if size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {size}")
    prompts = _prompts(options.input)
    model = _load(options, trusted)
    try:
        for route in _routes(
            model, prompts, size, "standard input" if live else str(options.input)
        ):
            alarm = watch.add(route)
            if alarm is not None:
                show(json_text({"alarm": alarm}, indent=None) if options.json else _line(alarm))
    except KeyboardInterrupt:
        if not live:
            raise
    summary = watch.summary()
    show(json_text({"summary": summary}, indent=None) if options.json else _text(summary))
    return ALARMED if watch.alarms else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "dmole watch",
        description="Route prompts in order and report unseen tasks.",
        epilog=f"Exit status: 0; {ALARMED} if an unseen task was reported; 1 after an error.",
    )
    parser.add_argument("run", help="run folder, bundle or hf://org/name")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="JSON or JSON lines of {prompt, image}, images relative to the file; "
        "- reads JSON lines from standard input as they arrive",
    )
    parser.add_argument("--window", type=int, default=32, help="samples that are counted")
    parser.add_argument("--limit", type=float, default=0.5, help="share rejected for an alarm")
    parser.add_argument("--threshold_scale", type=float, help="factor on the router's thresholds")
    parser.add_argument("--batch_size", type=int, help="prompts at once; 16, or 1 from -")
    parser.add_argument("--device", default="cpu", help="device of the base model")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


def _prompts(path: Path) -> Iterable[dict[str, Any]]:
    from dmole.inference.prompts import prompts_of_lines, read_prompts

    if str(path) == STDIN:
        return prompts_of_lines(sys.stdin, "standard input")
    return read_prompts(path)


def _load(options: Any, trusted: tuple[str, ...]) -> RoutedModel:
    """Return the model of the run, whose router must reject samples."""
    from dmole.inference import load
    from dmole.routing import AutoencoderRouter

    check_device(options.device)
    model = load(options.run, device=options.device, trusted=trusted)
    router = getattr(model.router, "router", model.router)  # inside CommonExpertRouter
    if not isinstance(router, AutoencoderRouter):
        kind = type(router).__name__
        raise ValueError(f"{options.run}: a {kind} rejects no sample, so there is nothing to watch")
    if options.threshold_scale is not None:
        router.threshold_scale = options.threshold_scale
    return model


def _routes(
    model: RoutedModel, prompts: Iterable[dict[str, Any]], size: int, source: str
) -> Iterator[Route]:
    """Yield the route of each prompt, in order."""
    iterator, count = iter(prompts), 0
    while items := list(islice(iterator, size)):
        try:
            routes = _route(model, items)
        except ValueError:
            for number, item in enumerate(items, start=count + 1):  # name the one that fails
                try:
                    _route(model, [item])
                except ValueError as error:
                    reason = one_line(error).removeprefix("request 0: sample '0': ")
                    raise ValueError(f"{source}: sample {number}: {reason}") from error
            raise
        count += len(items)
        yield from routes


def _route(model: RoutedModel, items: list[dict[str, Any]]) -> list[Route]:
    from dmole.inference import make_request

    return model.route_requests(
        [make_request(item["prompt"], item.get("image"), options=model.images) for item in items]
    )


def _line(alarm: dict[str, Any]) -> str:
    """Return the line of an alarm."""
    return (
        f"sample {alarm['position']}: unseen task since sample {alarm['since']}, "
        f"{alarm['rejected_in_window']} of the last {alarm['window']} samples rejected "
        f"({alarm['share']:.0%}): {_ranges(alarm['samples'])}"
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as ranges.

    Example:
        >>> _ranges([3, 4, 5, 8])
        '3-5, 8'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)


def _text(summary: dict[str, Any]) -> str:
    """Return the summary as lines."""
    if not summary["samples"]:
        return "0 samples"
    head = (
        f"{summary['samples']} samples, {summary['rejected']} rejected "
        f"({summary['share_rejected']:.1%}), alarms: {summary['alarms']}"
    )
    width = max(map(len, summary["gate_sets"])) + 2
    return "\n".join([head, *(f"  {n:<{width}}{c}" for n, c in summary["gate_sets"].items())])
