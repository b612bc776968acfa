"""What the server accepts at most, and for how long it waits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """Limits of the server; each has a default for a machine of some gigabytes.

    Args:
        max_batch: Most requests that one forward pass answers.
        max_wait_ms: Milliseconds that a request waits for others to share its batch.
        max_queue: Most requests that wait; the next one is refused with 429.
        max_new_tokens: Most tokens of an answer.
        max_prompt_chars: Most characters of the text of a request.
        max_images: Most images of a request.
        max_image_pixels: Most pixels of an image, read from its header before it is decoded.
        max_body_mb: Most megabytes of the body of a request.
        max_connections: Most open connections; the next request is refused with 503.
        read_seconds: Seconds for a client to send the head, and again the body, of a request.
        write_seconds: Seconds that a client may let a part of its answer wait.
        drain_seconds: Seconds for running requests after SIGTERM.

    Raises:
        ValueError: If a limit is not positive (``max_wait_ms`` may be 0); names it.
    """

    max_batch: int = 8
    max_wait_ms: float = 5.0
    max_queue: int = 64
    max_new_tokens: int = 256
    max_prompt_chars: int = 100_000
    max_images: int = 4
    max_image_pixels: int = 16_000_000
    max_body_mb: float = 20.0
    max_connections: int = 1000
    read_seconds: float = 20.0
    write_seconds: float = 30.0
    drain_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_wait_ms" else 1 if isinstance(value, int) else None
            valid = value >= least if least is not None else value > 0
            if not (valid and math.isfinite(value)):
                raise ValueError(f"--{field.name} must be positive, got {value}")

    @property
    def max_body_bytes(self) -> int:
        """Most bytes of the body of a request."""
        return int(self.max_body_mb * 1_000_000)


@dataclass(frozen=True)
class Access:
    """Who may ask, and what the server reads on behalf of a request.

    Args:
        api_key: The key that each request must carry; None asks for none.
        image_folder: Folder below which ``file://`` images are read; None refuses them.
        image_hosts: Hosts, each with or without a port, from which images are fetched by http.
        run_folder: Folder below which ``POST /v1/experts`` may name runs; None refuses it.
        check_host: Whether a request must name this machine in its ``Host`` header. It keeps a web
            page that points its own name at 127.0.0.1 from using a server without a key.
    """

    api_key: str | None = None
    image_folder: Path | None = None
    image_hosts: tuple[str, ...] = ()
    run_folder: Path | None = None
    check_host: bool = False
