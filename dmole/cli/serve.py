"""``dmole serve``: an OpenAI-compatible endpoint for a finished run."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dmole.cli.arguments import ArgumentParser, check_device
from dmole.cli.keys import KEY_VARIABLE, key_of_clients
from dmole.messages import show, visible

if TYPE_CHECKING:
    from dmole.serving.limits import Access
    from dmole.serving.service import Service

log = logging.getLogger("dmole")

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
_LIMITS = {
    "max_batch": "most requests that one forward pass answers",
    "max_wait_ms": "milliseconds that a request waits for others to share its batch",
    "max_queue": "most requests that wait; the next one gets status 429",
    "max_new_tokens": "most tokens of an answer, also if a request names no number",
    "max_prompt_chars": "most characters of the text of a request",
    "max_images": "most images of a request",
    "max_image_pixels": "most pixels of an image",
    "max_body_mb": "most megabytes of the body of a request",
    "max_connections": "most open connections; the next request gets status 503",
    "read_seconds": "seconds for a client to send the head, and the body, of a request",
    "write_seconds": "seconds that a client may let a part of its answer wait",
    "drain_seconds": "seconds for running requests after SIGTERM",
}


def run_serve(words: list[str]) -> None:
    """Serve a run at an OpenAI-compatible endpoint, with a chat page at /."""
    options = _parser().parse_args(words)
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise ImportError(f"serve needs the package {package}: pip install 'dmole[serve]'")
    import asyncio

    from dmole.serving.limits import Limits
    from dmole.serving.server import address_of, bind, is_loopback, make_server, serve
    from dmole.serving.service import Settings
    from dmole.serving.watch import Watcher

    limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
    local = is_loopback(options.host)
    access = _access(options, local)
    settings = Settings(limits, access, options.alarm_window, options.alarm_share)
    _log_to_stderr()
    with bind(options.host, options.port) as listener:  # before the model, which takes longer
        service = _load(options, settings)
        service.engine.start()
        watcher = None
        if options.watch is not None:
            folder = Path(options.watch) if options.watch else options.run.resolve().parent
            watcher = Watcher(service, folder, options.watch_seconds, options.run)
        ready = f"serving {', '.join(service.experts) or 'no expert'} at {address_of(listener)}"
        server = make_server(service)
        server.on_ready = lambda: show(ready)
        try:
            asyncio.run(serve(server, listener, watcher))
        finally:
            service.close()


def _load(options: argparse.Namespace, settings: object) -> Service:
    from transformers.utils import logging as transformers_logging

    from dmole.cli.trust import take_trusted
    from dmole.inference import load
    from dmole.serving.service import Service, Settings

    check_device(options.device)
    transformers_logging.disable_progress_bar()
    assert isinstance(settings, Settings)
    _, trusted = take_trusted([f"--trust_classes={value}" for value in options.trust_classes])
    model = load(
        options.run,
        device=options.device,
        base=options.base,
        trusted=trusted,
        trust_remote_code=options.trust_remote_code,
        accept_changes=options.accept_changes,
    )
    model.limit_memory(
        max_loaded=options.max_loaded,
        pinned=options.pin,
        storage="disk" if model.device.type == "cpu" else "cpu",
    )
    return Service(model, settings)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "dmole serve",
        description=run_serve.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="run folder or bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8000, help="port; 0 takes a free one")
    parser.add_argument("--device", default="cpu", help="device of the model, such as cuda")
    _add_access(parser.add_argument_group("who may ask, and what is read for them"))
    group = parser.add_argument_group("limits")
    from dmole.serving.limits import Limits

    for field in fields(Limits):
        default = field.default
        group.add_argument(
            f"--{field.name}", type=type(default), default=default, help=_LIMITS[field.name]
        )
    _add_rest(parser)
    return parser


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--api_key",
        default=argparse.SUPPRESS,
        help=f"key that each request must carry; others see it in the list of processes, so "
        f"prefer the environment variable {KEY_VARIABLE}",
    )
    group.add_argument(
        "--no_api_key", action="store_true", help="allow an address that others reach, without key"
    )
    group.add_argument(
        "--allow_files", type=Path, metavar="DIR", help="read file:// images below this folder"
    )
    group.add_argument(
        "--allow_http",
        nargs="+",
        default=[],
        metavar="HOST",
        help="fetch images from these hosts, each with its port if it has one",
    )
    group.add_argument(
        "--allow_experts",
        type=Path,
        metavar="DIR",
        help="let POST /v1/experts add experts of runs below this folder",
    )


def _add_rest(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        nargs="?",
        const="",
        metavar="DIR",
        help="add the experts of runs that finish below this folder, by default beside the run",
    )
    parser.add_argument("--watch_seconds", type=float, default=5.0, help="time between two looks")
    parser.add_argument(
        "--alarm_window", type=int, default=100, help="requests that the unseen-task alarm sees"
    )
    parser.add_argument(
        "--alarm_share", type=float, default=0.5, help="share of rejected ones that sets it off"
    )
    parser.add_argument(
        "--max_loaded", type=int, help="most experts that stay in memory between two batches"
    )
    parser.add_argument(
        "--pin", nargs="+", default=[], metavar="EXPERT", help="experts that always stay in memory"
    )
    parser.add_argument("--base", help="folder or name of the base model, if it has moved")
    parser.add_argument(
        "--accept_changes",
        action="store_true",
        help="serve although prompts or image processing of the base model have changed",
    )
    parser.add_argument(
        "--trust_classes", action="append", default=[], help="modules of your own to trust"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code of the base model's folder"
    )


def _access(options: argparse.Namespace, local: bool) -> Access:
    """Return who may ask.

    Raises:
        ValueError: If others reach the address and there is no key, a key has characters that a
            header cannot hold, or a folder does not exist.
    """
    from dmole.serving.limits import Access

    given = getattr(options, "api_key", None)
    key = key_of_clients(options.host, local, anybody=options.no_api_key, given=given)
    for name in ("allow_files", "allow_experts", "watch"):
        folder = getattr(options, name)
        if folder and not Path(folder).is_dir():
            raise ValueError(f"--{name} {folder} is no folder")
    return Access(
        api_key=key,
        image_folder=options.allow_files,
        image_hosts=tuple(host.lower() for host in options.allow_http),
        run_folder=options.allow_experts,
        check_host=local and key is None,
    )


class _StandardError(logging.Handler):
    """Prints each message in one visible line."""

    def emit(self, record: logging.LogRecord) -> None:
        print(visible(self.format(record), keep="\n"), file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    if not log.handlers:
        log.addHandler(_StandardError())
        log.setLevel(logging.INFO)
        log.propagate = False
