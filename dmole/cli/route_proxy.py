"""``dmole route-proxy``: chooses the adapter of each request to another server."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dmole.cli.arguments import ArgumentParser
from dmole.cli.keys import UPSTREAM_KEY_VARIABLE, key_of, key_of_clients
from dmole.cli.trust import take_trusted
from dmole.messages import show

if TYPE_CHECKING:
    from dmole.serving.limits import Access, Limits

_PACKAGES = ("starlette", "uvicorn", "prometheus_client", "pydantic")
_LIMITS = (
    ("max_queue", "most requests that wait for the router; the next one gets status 429"),
    ("max_prompt_chars", "most characters of the text of a request"),
    ("max_images", "most images of a request"),
    ("max_image_pixels", "most pixels of an image"),
    ("max_body_mb", "most megabytes of the body of a request"),
    ("max_connections", "most open connections; the next request gets status 503"),
)


def run_route_proxy(words: list[str]) -> None:
    """Route each chat completion with an export and pass it on to the server of its adapters."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise ImportError(
                f"route-proxy needs the package {package}: pip install 'dmole[serve]'"
            )
    words, trusted = take_trusted(words)
    options = _parser().parse_args(words)

    import asyncio

    import uvicorn
    from transformers.utils import logging as transformers_logging

    from dmole.inference.loading import load_router
    from dmole.run.export_file import read_export
    from dmole.serving.protocol import server_options, timed_protocol
    from dmole.serving.proxy import RouteProxy, Upstream
    from dmole.serving.proxy_api import make_proxy_app
    from dmole.serving.server import Server, address_of, bind, serve

    transformers_logging.disable_progress_bar()
    limits, access = _limits(options), _access(options)
    upstream = Upstream(options.upstream, key_of(UPSTREAM_KEY_VARIABLE), options.upstream_seconds)
    export = read_export(options.export)
    with bind(options.host, options.port) as listener:  # before the model, which takes longer
        router = load_router(
            options.export,
            export,
            device=options.device,
            base=options.base,
            trusted=trusted,
            trust_remote_code=options.trust_remote_code,
        )
        proxy = RouteProxy(router, export, upstream, limits, access)
        protocol = timed_protocol(limits)
        settings = server_options(protocol, limits.max_connections, limits.drain_seconds)
        server = Server(uvicorn.Config(make_proxy_app(proxy), **settings))
        ready = f"routing to {options.upstream} at {address_of(listener)}"
        server.on_ready = lambda: show(ready)
        asyncio.run(serve(server, listener))


def _parser() -> ArgumentParser:
    from dmole.serving.limits import Limits

    parser = ArgumentParser(
        "dmole route-proxy",
        description=run_route_proxy.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("export", type=Path, help="folder made by dmole export")
    parser.add_argument("--base", help="folder or name of the base model")
    parser.add_argument("--upstream", required=True, help="server of the adapters, http://host/v1")
    parser.add_argument(
        "--upstream_seconds", type=float, default=600.0, help="most seconds between its parts"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8001, help="port; 0 takes a free one")
    parser.add_argument("--device", default="cpu", help="device of the base model, such as cuda")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code of the base model"
    )
    parser.add_argument(
        "--no_api_key", action="store_true", help="allow an address that others reach, without key"
    )
    for name, text in _LIMITS:
        value = getattr(Limits(), name)
        parser.add_argument(f"--{name}", type=type(value), default=value, help=text)
    return parser


def _limits(options: argparse.Namespace) -> Limits:
    from dmole.serving.limits import Limits

    return Limits(**{name: getattr(options, name) for name, _ in _LIMITS})


def _access(options: argparse.Namespace) -> Access:
    """Return who may ask.

    Raises:
        ValueError: If others reach the address and there is no key, or a key is not valid.
    """
    from dmole.serving.limits import Access
    from dmole.serving.server import is_loopback

    local = is_loopback(options.host)
    key = key_of_clients(options.host, local, anybody=options.no_api_key, flag=None)
    return Access(api_key=key, check_host=local and key is None)
