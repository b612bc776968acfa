"""Images are fetched from allowed hosts alone, and from no other one that such a host names."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from dmole.serving.errors import ApiError
from dmole.serving.images import ImageReader
from dmole.serving.limits import Access, Limits


class Pictures(BaseHTTPRequestHandler):
    """Serves a picture, a text, and a redirect to the picture under another name of this host."""

    def do_GET(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (4, 3), "red").save(file, "PNG")
        contents = {"/red.png": file.getvalue(), "/text": b"a" * 5000}
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/red.png")
            self.end_headers()
        elif self.path in contents:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(contents[self.path])
        else:
            self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_of_an_allowed_host_is_read(host: str) -> None:
    reader = ImageReader(Limits(), Access(image_hosts=(host,)))
    assert reader.read(f"http://{host}/red.png").load().size == (4, 3)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://{host}/moved", "cannot fetch an image from .*302"),
        ("http://{host}/none", "cannot fetch an image from .*404"),
        ("http://{host}/text", "a fetched image has more than 1000 bytes"),
        ("http://{host}@127.0.0.1:1/red.png", "this server fetches no images from"),
        ("http://127.0.0.1:1/red.png", "this server fetches no images from '127.0.0.1:1'"),
        ("http://[/red.png", "the address of an image is malformed"),
        ("http://{host}/a red\t.png", "cannot fetch an image from"),
    ],
)
def test_other_hosts_redirects_and_large_contents_are_refused(
    address: str, expected: str, host: str
) -> None:
    reader = ImageReader(Limits(max_body_mb=0.001), Access(image_hosts=(host,)))
    with pytest.raises(ApiError, match=expected) as refused:
        reader.read(address.replace("{host}", host))
    assert refused.value.status == 400
