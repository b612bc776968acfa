"""A server that stands in for vLLM."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StandIn:
    """A server that answers with the name of the model that it was asked for.

    Args:
        url: Its address up to ``/v1``.
        bodies: Bodies of the requests.
        keys: Their ``Authorization`` headers.
        release: Lets streams go on.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve_stand_in() -> Iterator[StandIn]:
    """Serve on a free port for the body of a ``with`` statement.

    A request with ``temperature`` 9 gets an error, and a stream waits for ``release`` after its
    first event.
    """
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.bodies.append(body)
            stand_in.keys.append(self.headers.get("Authorization"))
            if body.get("temperature") == 9:
                self._send(422, b'{"error": {"message": "too hot"}}', "application/json")
            elif body.get("stream"):
                self._stream(body["model"])
            else:
                content = json.dumps({"model": body["model"], "choices": []}).encode()
                self._send(200, content, "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, model: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for index, part in enumerate((f"data: {model}\n\n", "data: [DONE]\n\n", "")):
                if index == 1:
                    stand_in.release.wait(30)
                content = part.encode()
                self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
                self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield stand_in
    stand_in.release.set()
    server.shutdown()
    thread.join()
    server.server_close()
