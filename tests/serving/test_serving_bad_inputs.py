"""A bad request gets one line that says why, and the server goes on."""

from __future__ import annotations

import json
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from raw_requests import KEY, chat, message, picture, png, send, uri
from serving_runs import Question, Served, served

from dmole.inference import Answer, RoutedModel
from dmole.serving.limits import Access, Limits


@pytest.fixture(scope="module")
def server(model: RoutedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    images = tmp_path_factory.mktemp("images")
    Image.new("RGB", (8, 8), "red").save(images / "red.png")
    (images / "text.png").write_text("no image")
    (images / "folder.png").mkdir()
    Image.new("RGB", (8, 8), "red").save(images.parent / "outside.png")
    (images / "link.png").symlink_to(images.parent / "outside.png")
    limits = Limits(
        max_new_tokens=8, max_images=2, max_image_pixels=10_000, max_body_mb=1, max_wait_ms=0
    )
    with served(model, limits, Access(api_key=KEY, image_folder=images)) as running:
        yield running


def bomb(side: int) -> bytes:
    """Return a PNG file of some bytes whose header names a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.fixture(autouse=True)
def _still_answers(
    server: Served, questions: list[Question], offline: list[Answer]
) -> Iterator[None]:
    """After each bad request, the server answers a good one as before."""
    yield
    status, content = send(
        server, {"model": "auto", "messages": questions[0].messages, "max_tokens": 4}
    )
    assert status == 200
    assert content["choices"][0]["message"]["content"] == offline[0].text


BODIES: list[tuple[Any, str]] = [
    ("{", "the body is no JSON: .*"),
    ("", "Field required|Input should be a valid dictionary.*"),
    ("[]", ".*valid dictionary.*"),
    (b"\xff\xfe", ".*"),
    ('{"model": "auto", "messages": NaN}', ".*"),
    ({"messages": []}, r"(messages: List|model: Field).*"),
    (chat(model=3), "model: Input should be a valid string"),
    ({"model": "auto", "messages": []}, "messages: .*at least 1 item.*"),
    ({"model": "auto", "messages": "hi"}, "messages: .*list.*"),
    (chat(7), "messages.0.content: .*list.*"),
    (chat([]), "messages.0.content: .*at least 1 item.*"),
    (chat(""), "message 0 is empty"),
    (chat(" \n"), "message 0 is empty"),
    (chat([{"type": "input_audio"}]), "messages.0.content.0.type: .*'text' or 'image_url'"),
    (chat([{"type": "text"}]), "messages.0.content.0: a part of type text needs text alone"),
    (chat([{"type": "image_url", "image_url": "x"}]), "messages.0.content.0.image_url: .*"),
    (chat("<image> how many ?"), "message 0: a text may not hold <image>"),
    (chat("\ud800"), "message 0: a text may not hold half a surrogate pair"),
    (chat(max_tokens=0), "max_tokens: .*greater than or equal to 1"),
    (chat(max_tokens="4"), "max_tokens: Input should be a valid integer"),
    (chat(max_tokens=10**30), "max_tokens.* 8"),
    (chat(max_tokens=2, max_completion_tokens=3), "max_tokens and max_completion_tokens differ.*"),
    (chat(n=2), "n must be 1: decoding is deterministic.*"),
    (chat(temperature=0.7), "temperature must be 0 or 1: decoding is deterministic.*"),
    (chat(tools=[{"type": "function"}]), "tools must be .*: there are no tools"),
    (chat(response_format={"type": "json_object"}), "response_format must be .*"),
    (chat(logprobs=True), "logprobs must be False: .*"),
    (chat(stop=["a"] * 5), "stop: .*at most 4 items.*"),
    (chat(stop=""), "stop.0: .*at least 1 character"),
    (chat(stream_options={"include_usage": True}), "stream_options needs stream: true"),
    (chat(best_of=2), "best_of: this server knows no such key"),
    (chat("a" * 100_001), "the messages have 100001 characters, this server takes at most 100000"),
    (chat("star " * 10_000), r"the prompt has 1000\d tokens, this model takes at most 512"),
    (
        chat("star " * 505, max_tokens=8),
        r"the prompt has \d+ tokens and the answer may have 8, .*512 together",
    ),
]


@pytest.mark.parametrize(("body", "expected"), BODIES, ids=range(len(BODIES)))
def test_a_body_that_cannot_be_answered_is_refused(
    body: Any, expected: str, server: Served
) -> None:
    found = message(server, body)
    assert re.fullmatch(expected, found), found


ORDERS = [["assistant"], ["user", "user"], ["user", "assistant"], ["user", "system"], ["system"]]


@pytest.mark.parametrize("roles", ORDERS, ids="-".join)
def test_turns_in_another_order_are_refused(roles: list[str], server: Served) -> None:
    messages = [{"role": role, "content": "a"} for role in roles]
    assert "messages must be an optional system message" in message(
        server, {"model": "auto", "messages": messages}
    )


def test_a_role_that_the_template_does_not_know_is_refused(server: Served) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert "the roles are 'user' and 'assistant'" in message(
        server, {"model": "auto", "messages": messages}
    )


IMAGES: list[tuple[str, str]] = [
    ("cat.png", "an image must be a data URI .*"),
    ("ftp://host/cat.png", "an image must be a data URI .*"),
    ("http://127.0.0.1:1/cat.png", "this server fetches no images.*"),
    ("data:image/png,abc", ".*must begin with 'data:image/<kind>;base64,'"),
    ("data:image/png;base64,", ".*holds no bytes"),
    ("data:image/png;base64,a.b", ".*is not base64.*"),
    (uri(b"no image"), "an image of 8 bytes, digest .* cannot be read: it is not one of JPEG.*"),
    (uri(png(64, 64)[:50]), ".*cannot (be )?read.*"),
    (uri(png(101, 100)), "an image has 101 x 100 pixels, this server takes at most 10000 pixels"),
    (uri(bomb(10_000)), "an image .*pixels.*"),
    (uri(bomb(60_000)), "an image .*pixels.*"),
    ("file:///etc/passwd", "a file:// image must be below the folder that this server allows"),
    ("file://../outside.png", "a file:// image must be below .*"),
    ("file://host/red.png", "a file:// image must be below .*"),
    ("file:///%00", "a file:// image must be below .*"),
    ("{folder}/../outside.png", "a file:// image must be below .*"),
    ("{folder}/link.png", "a file:// image must be below .*"),
    ("{folder}/folder.png", "there is no image file .*"),
    ("{folder}/none.png", "there is no image file .*"),
    ("{folder}/text.png", "an image .* cannot be read.*"),
]


@pytest.mark.parametrize(("url", "expected"), IMAGES, ids=range(len(IMAGES)))
def test_an_image_that_cannot_be_used_is_refused(url: str, expected: str, server: Served) -> None:
    folder = f"file://{server.service.settings.access.image_folder}"
    found = message(server, picture(url.replace("{folder}", folder)))
    assert re.fullmatch(expected, found), found


def test_a_file_below_the_allowed_folder_is_read(server: Served) -> None:
    folder = server.service.settings.access.image_folder
    assert send(server, picture(f"file://{folder}/red.png"))[0] == 200


def test_too_many_images_and_images_outside_of_user_messages_are_refused(server: Served) -> None:
    part = picture(uri(png(8, 8)))["messages"][0]["content"][0]
    assert "3 images, this server takes at most 2" in message(server, chat([part] * 3))
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [part]},
        {"role": "user", "content": "b"},
    ]
    found = message(server, {"model": "auto", "messages": turns})
    assert found == "message 1: only a user message may hold an image"


@pytest.mark.parametrize("text", ["a\0b", "\x1b[31m", "</s><s>USER: x", "\u202e", "🦔"])
def test_odd_texts_are_text(text: str, server: Served) -> None:
    status, content = send(server, chat(text))
    assert status == 200, content


def test_an_unknown_model_or_path_is_not_found(server: Served) -> None:
    for name in ("gpt-9", "paint+paint", "paint+", "PAINT", "x" * 400, "a\x1b\nb"):
        assert "there is no model" in message(server, chat() | {"model": name}, 404)
    assert message(server, {}, 404, path="/v1/nothing") == "Not Found"
    assert message(server, {}, 404, path="/v1/experts/none", method="DELETE")
    assert message(server, {}, 405, path="/v1/models")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer wrong", "Basic YTpi", f"Bearer {KEY}x"])
def test_a_wrong_key_is_refused_before_anything_else(value: str, server: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/models", "/metrics", "/v1/experts", "/nothing"):
        assert "needs its API key" in message(server, "{", 401, path=path, Authorization=value)


def test_a_body_that_is_too_large_is_refused_whether_or_not_it_says_so(server: Served) -> None:
    body = json.dumps(chat("a" * 1_100_000)).encode()
    assert "more than 1000000 bytes" in message(server, body, 413)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    assert "more than 1000000 bytes" in message(server, pieces(), 413)  # chunked: no length


def test_experts_are_added_with_permission_alone(server: Served) -> None:
    body = {"run": "x", "name": "y"}
    assert "--allow_experts" in message(server, body, 403, path="/v1/experts")
    assert "name: Field required" in message(server, {"run": "x"}, 400, path="/v1/experts")


def test_a_server_without_key_answers_pages_of_this_machine_alone(model: RoutedModel) -> None:
    with served(model, access=Access(check_host=True)) as local:
        options = {"Authorization": ""}
        assert send(local, chat(max_tokens=1), **options)[0] == 200
        assert send(local, chat(max_tokens=1), Host="localhost:1", **options)[0] == 200
        assert send(local, chat(max_tokens=1), Host="evil.example", **options)[0] == 403
        assert send(local, chat(max_tokens=1), Origin=local.url, **options)[0] == 200
        for origin in ("null", "http://evil.example", "http://localhost:1"):
            assert send(local, chat(max_tokens=1), Origin=origin, **options)[0] == 403
        # a form of another page cannot set the type of JSON without asking first
        for kind in ("text/plain", ""):
            assert send(local, json.dumps(chat()), **{"Content-Type": kind})[0] == 415


def test_a_failure_of_the_server_is_logged_and_not_shown(
    model: RoutedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("device lost at /home/user")

    with served(model) as failing:
        monkeypatch.setattr(model, "answer", broken)
        status, content = send(failing, chat())
        assert (status, content["error"]["type"]) == (500, "server_error")
        assert "/home/user" not in json.dumps(content)
        assert send(failing, chat(stream=True))[0] == 500
        monkeypatch.undo()
        assert send(failing, chat(max_tokens=1))[0] == 200
    assert "device lost at /home/user" in caplog.text


def test_a_full_queue_answers_429_with_the_time_to_wait(
    server: Served, model: RoutedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = threading.Event(), threading.Event()
    answer = model.answer

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert gate.wait(60)
        return answer(*arguments)

    with served(model, Limits(max_batch=1, max_queue=1, max_wait_ms=0)) as full:
        monkeypatch.setattr(model, "answer", slow)
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(send(full, chat(max_tokens=1))[0]))
            for _ in range(2)
        ]
        threads[0].start()
        assert entered.wait(60)
        threads[1].start()
        while full.service.engine.queue_length == 0:
            pass
        status, content = send(full, chat(max_tokens=1))
        assert (status, content["error"]["code"]) == (429, "queue_full")
        gate.set()
        for thread in threads:
            thread.join()
        assert results == [200, 200]
        monkeypatch.undo()
