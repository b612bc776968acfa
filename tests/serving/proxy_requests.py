"""Requests to the routing proxy, and its limits in the tests."""

from __future__ import annotations

import base64
from typing import Any

from starlette.testclient import TestClient

from dmole.serving.limits import Limits

LIMITS = Limits(max_images=2, max_prompt_chars=2000, max_image_pixels=10_000)


def chat(text: str, png: bytes | None = None, **more: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if png is not None:
        address = "data:image/png;base64," + base64.b64encode(png).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": address}})
    return {"model": "auto", "messages": [{"role": "user", "content": content}], **more}


def post(client: TestClient, body: Any) -> Any:
    return client.post("/v1/chat/completions", json=body)


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
