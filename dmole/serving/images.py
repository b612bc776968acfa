"""Reads the images of a request: from data URIs and, where the server allows it, files and http."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from dmole.data.decoding import AS_STORED, FORMATS, ImageOptions
from dmole.data.images import data_uri_bytes
from dmole.data.sample import EmbeddedImage
from dmole.messages import excerpt, one_line
from dmole.serving.errors import ApiError
from dmole.serving.limits import Access, Limits

_FETCH_SECONDS = 10.0
_CHUNK = 1 << 16


class ImageReader:
    """Returns the encoded bytes of the images of requests, after a look at their headers.

    Args:
        limits: Gives the most bytes and pixels of an image.
        access: Says which files and hosts are read.
        options: Treatment of transparency and orientation, as in the run.
    """

    def __init__(self, limits: Limits, access: Access, options: ImageOptions = AS_STORED) -> None:
        self._limits = limits
        self._access = access
        self._options = options

    def read(self, url: str) -> EmbeddedImage:
        """Return an image whose header was checked; its pixels are decoded later.

        Args:
            url: A data URI, or an address that starts with ``file://``, ``http://`` or
                ``https://``.

        Raises:
            ApiError: If the server does not read such an address, or it holds no image within the
                limits.
        """
        scheme = url[:10].partition(":")[0].lower()
        readers: dict[str, Callable[[str], bytes]] = {
            "data": _from_data_uri,
            "file": self._from_file,
            "http": self._from_host,
            "https": self._from_host,
        }
        if scheme not in readers:
            raise _refused("an image must be a data URI such as 'data:image/png;base64,...'")
        content = readers[scheme](url)
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        name = f"of {len(content)} bytes, digest {digest}"
        self._check_header(content, name)
        return EmbeddedImage(name, len(content), lambda: content, self._options)

    def _check_header(self, content: bytes, name: str) -> None:
        """Refuse what is no image or has too many pixels, without decoding it."""
        try:
            Image.init()
            formats = [kind for kind in FORMATS if kind in Image.OPEN]
            with Image.open(io.BytesIO(content), formats=formats) as image:
                width, height = image.size
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _refused(f"an image {name} has far too many pixels") from error
        except Exception as error:  # decoders raise many exception types for damaged files
            kinds = ", ".join(FORMATS)
            raise _refused(f"an image {name} cannot be read: it is not one of {kinds}") from error
        if width * height > self._limits.max_image_pixels:
            raise _refused(
                f"an image has {width} x {height} pixels, this server takes at most "
                f"{self._limits.max_image_pixels} pixels"
            )

    def _from_file(self, url: str) -> bytes:
        folder = self._access.image_folder
        if folder is None:
            raise _refused("this server reads no files: send the image as a data URI")
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        outside = _refused("a file:// image must be below the folder that this server allows")
        if parts.netloc not in ("", "localhost") or not path.is_absolute() or "\0" in str(path):
            raise outside
        real, root = os.path.realpath(path), os.path.realpath(folder)
        if os.path.commonpath([real, root]) != root:
            raise outside
        if not os.path.isfile(real):
            raise _refused(f"there is no image file {excerpt(str(path))}")
        try:
            with open(real, "rb") as file:
                return self._bounded(file, "an image file")
        except OSError as error:
            raise _refused(f"cannot read image file {excerpt(str(path))}") from error

    def _from_host(self, url: str) -> bytes:
        hosts = self._access.image_hosts
        if not hosts:
            raise _refused("this server fetches no images: send the image as a data URI")
        try:
            parts = urlsplit(url)
            host = parts.netloc.lower()
        except ValueError as error:
            raise _refused("the address of an image is malformed") from error
        if host not in hosts:
            raise _refused(f"this server fetches no images from {excerpt(host)}")
        try:
            with _OPENER.open(url, timeout=_FETCH_SECONDS) as response:
                return self._bounded(response, "a fetched image")
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise _refused(f"cannot fetch an image from {host}: {one_line(error)}") from error

    def _bounded(self, file: Any, what: str) -> bytes:
        most, content = self._limits.max_body_bytes, bytearray()
        end = time.monotonic() + _FETCH_SECONDS  # a slow host must not keep a thread
        while chunk := file.read1(_CHUNK):
            content += chunk
            if time.monotonic() > end:
                raise _refused(f"{what} takes longer than {_FETCH_SECONDS:g} seconds")
            if len(content) > most:
                raise _refused(f"{what} has more than {most} bytes")
        return bytes(content)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to a host that is not allowed."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


def _from_data_uri(url: str) -> bytes:
    try:
        return data_uri_bytes(url)
    except ValueError as error:
        raise _refused(one_line(error)) from error


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages", code="invalid_image")
