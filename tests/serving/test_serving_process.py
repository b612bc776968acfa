"""``dmole serve`` as a process: its start, its end, and what it refuses to start with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from openai import OpenAI
from serving_runs import Question

from dmole.cli import serve as verb
from dmole.cli.main import main
from dmole.inference import Answer
from dmole.serving.server import Server


@contextmanager
def process(run: Path, *flags: str, **environment: str) -> Iterator[tuple[Any, str]]:
    """Start the server of a run at a free port; yield the process and its address."""
    words = [sys.executable, "-m", "dmole", "serve", str(run), "--port", "0", *flags]
    started = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        line = started.stdout.readline() if started.stdout is not None else ""
        assert line.startswith("serving paint, count at http://127.0.0.1:"), line
        yield started, line.split()[-1]
    finally:
        started.kill()
        started.communicate()


@pytest.mark.slow
def test_sigterm_ends_the_server_after_all_that_waits_has_been_answered(
    run: Path, questions: list[Question], offline: list[Answer]
) -> None:
    flags = ("--max_batch", "1", "--max_wait_ms", "0", "--no_api_key", "--max_loaded", "1")
    with process(run, *flags, DMOLE_API_KEY="k") as (server, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=120)

        def ask(question: Question) -> str | None:
            found = client.chat.completions.create(
                model="auto", messages=question.messages, max_tokens=question.tokens
            )
            return found.choices[0].message.content

        with client, ThreadPoolExecutor(len(questions)) as pool:
            answers = [pool.submit(ask, question) for question in questions]
            next(iter(answers)).result()
            server.send_signal(signal.SIGTERM)
            assert [answer.result() for answer in answers] == [answer.text for answer in offline]
        output, log = server.communicate(timeout=60)
    assert server.returncode == 0
    assert output == ""
    assert log == "dmole: no new requests, running ones are answered\n"


def test_the_second_signal_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    server = Server(uvicorn.Config(lambda: None))
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, ended) == (True, [])
    server.handle_exit(signal.SIGINT, None)
    assert ended == [128 + signal.SIGINT]
    assert capfd.readouterr().err.count("\n") == 2


@pytest.mark.slow
def test_a_second_signal_ends_a_server_that_waits_for_a_request(run: Path) -> None:
    with process(run) as (server, url):
        port = int(url.rpartition(":")[2])
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 9\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 100")  # it waits for the body
            server.send_signal(signal.SIGTERM)
            assert server.stderr.readline() == "dmole: no new requests, running ones are answered\n"
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 128 + signal.SIGTERM


REFUSED = [
    (["--host", "0.0.0.0"], "--host 0.0.0.0 can be reached by others: set DMOLE_API_KEY"),
    (["--host", "nowhere.invalid"], "--host nowhere.invalid: "),
    (["--api_key", "größe"], "--api_key must be visible ASCII characters"),
    (["--api_key", ""], "--api_key must be visible ASCII characters"),
    (["--max_batch", "0"], "--max_batch must be positive, got 0"),
    (["--read_seconds", "nan"], "--read_seconds must be positive, got nan"),
    (["--allow_files", "/nowhere"], "--allow_files /nowhere is no folder"),
    (["--watch", "/nowhere"], "--watch /nowhere is no folder"),
    (["--port", "99999"], "--port 99999 is no port"),
    (["--alarm_share", "2", "--port", "0"], "--alarm_share must be in [0, 1], got 2.0"),
    (["--device", "cudo", "--port", "0"], "--device cudo: "),
    (["--device", "cuda:99", "--port", "0"], "--device cuda:99: "),
    (["--bogus"], "unrecognized arguments: --bogus"),
]


@pytest.mark.parametrize(("flags", "expected"), REFUSED, ids=lambda value: str(value)[:30])
def test_settings_that_cannot_be_served_are_refused_in_one_line(
    flags: list[str], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(run), *flags]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"dmole: {expected}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert f"{tmp_path} is no run folder" in capsys.readouterr().err


def test_a_port_in_use_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(run), "--port", str(port)]) == 1
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "find_spec", lambda name: None)
    assert main(["serve", str(run)]) == 1
    expected = "dmole: serve needs the package fastapi: pip install 'dmole[serve]'\n"
    assert capsys.readouterr().err == expected


def test_help_needs_neither_torch_nor_the_extra() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'fastapi', 'lightning'])); "
        "from dmole.cli.main import main; main(['serve', '--help'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--max_queue" in found.stdout
