"""Bad and good requests in the raw, for the tests of the server."""

from __future__ import annotations

import base64
import http.client
import io
import json
from typing import Any

from PIL import Image
from serving_runs import Served

KEY = "a key"


def send(
    server: Served,
    body: bytes | str | dict[str, Any],
    path: str = "/v1/chat/completions",
    method: str = "POST",
    **headers: str,
) -> tuple[int, Any]:
    """Return status and parsed body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    content = json.dumps(body) if isinstance(body, dict) else body
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
    try:
        connection.request(method, path, content, {k: v for k, v in sent.items() if v})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def message(server: Served, body: Any, status: int = 400, **more: str) -> str:
    """Return the message of an error, after a check of its form."""
    found, content = send(server, body, **more)
    assert found == status, content
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    text: str = content["error"]["message"]
    assert text.isprintable()
    assert len(text) <= 400
    return text


def chat(content: Any = "how many ?", **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": content}], **more}


def picture(url: str) -> dict[str, Any]:
    return chat([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}])


def uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()
