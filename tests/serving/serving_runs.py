"""What the tests of the server share: small runs, questions about pictures, a server."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from openai import OpenAI

from dmole.cli.main import main
from dmole.inference import RoutedModel
from dmole.run.loading import build_data
from dmole.run.model_file import read_run_settings
from dmole.serving.limits import Access, Limits
from dmole.serving.server import Server, address_of, bind, make_server, serve
from dmole.serving.service import Service, Settings


def learn(root: Path, name: str, tasks: tuple[str, ...], extended: Path | None = None) -> Path:
    """Return the folder of a small run on some synthetic tasks, or of one that extends a run."""
    config = {
        "trainer": {"name": name, "enable_progress_bar": False, "log_every_n_steps": 1},
        "data": {
            "batch_size": 8,
            "tasks": [
                {
                    "name": task,
                    "train": f"synthetic://{task}/train?size=32",
                    "test": f"synthetic://{task}/test?size=8",
                    "max_new_tokens": 4,
                }
                for task in tasks
            ],
        },
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["fit", "--config", "quickstart.yaml", "--config", str(path)]
    words += ["--trainer.default_root_dir", str(root)]
    words += ["--trainer.callbacks+=no_figures.NoFigures", "--trust_classes", "no_figures"]
    if extended is not None:
        words += ["--ckpt_path", str(extended)]
    assert main(words) == 0
    return root / name / "version_0"


@dataclass(frozen=True)
class Question:
    """A picture, a question and the number of tokens of its answer."""

    png: bytes
    text: str
    tokens: int = 4

    @property
    def uri(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def messages(self) -> Any:
        """The question as messages of OpenAI's API."""
        parts = [
            {"type": "image_url", "image_url": {"url": self.uri}},
            {"type": "text", "text": self.text},
        ]
        return [{"role": "user", "content": parts}]


def questions_of(run: Path) -> list[Question]:
    """Return the test samples of all tasks of a run, mixed."""
    data = build_data(read_run_settings(run))
    groups = []
    for name in data.task_names:
        group = []
        for sample in data.test_samples(name):
            file = io.BytesIO()
            sample.images[0].load().save(file, "PNG")
            group.append(Question(file.getvalue(), sample.prompt))
        groups.append(group)
    return [question for group in zip(*groups, strict=True) for question in group]


class Served:
    """A server that runs in a thread of the test."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.listener = bind("127.0.0.1", 0)
        self.url = address_of(self.listener)
        self.port: int = self.listener.getsockname()[1]
        self.server = make_server(service)
        self.thread = threading.Thread(
            target=lambda: asyncio.run(serve(self.server, self.listener)), name="server"
        )

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)


@contextmanager
def served_in_thread(server: Server) -> Iterator[str]:
    """Yield the address of a server that runs in a thread for the body of a ``with`` statement."""
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(serve(server, listener)), name="server")
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def served(
    model: RoutedModel, limits: Limits | None = None, access: Access | None = None, **more: Any
) -> Iterator[Served]:
    """Serve a model in a thread for the body of a ``with`` statement."""
    service = Service(model, Settings(limits or Limits(), access or Access(), **more))
    service.engine.start()
    running = Served(service)
    running.thread.start()
    try:
        yield running
    finally:
        running.server.should_exit = True
        running.thread.join(60)
        service.close()
        assert not running.thread.is_alive()
