"""Image names of a data file: none leads out of the root, and none is mistaken."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from dmole.data.images import ImageRoot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for path in (folder / "a.png", folder / "sub" / "a b.png", tmp_path / "secret" / "s.png"):
        Image.new("RGB", (2, 2)).save(path)
    (folder / "file.png").symlink_to(tmp_path / "secret" / "s.png")
    (folder / "folder").symlink_to(tmp_path / "secret")
    (folder / "sub" / "up").symlink_to("../../secret")
    (folder / "chain.png").symlink_to("file.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dead.png").symlink_to("nothing.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("name", ["a.png", "./a.png", "sub/a b.png", "sub//a b.png"])
def test_a_name_below_the_root_is_found(root: Path, name: str) -> None:
    assert ImageRoot(root).find(name).load().size == (2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must be relative to"),
        (".", "must be relative to|is not a file"),
        ("..", "must be relative to"),
        ("../secret/s.png", "must be relative to"),
        ("sub/../../secret/s.png", "must be relative to"),
        ("sub/..", "must be relative to"),
        ("/etc/passwd", "must be relative to"),
        ("//etc/passwd", "must be relative to"),
        ("..\\secret\\s.png", "forward slashes"),
        ("sub\\a b.png", "forward slashes"),
        ("C:\\a.png", "forward slashes"),
        ("C:/a.png", "forward slashes"),
        ("\\\\host\\share\\a.png", "forward slashes"),
        ("file:///etc/passwd", "forward slashes"),
        ("https://example.org/a.png", "forward slashes"),
        ("a.png\0.jpg", "forward slashes"),
        ("a\n.png", "forward slashes"),
        ("\ud800.png", "forward slashes"),
        ("a" * 300 + ".png", r"image path 'a{80}\.\.\.' of 304 characters cannot be used: File na"),
        ("a/" * 3000 + "a.png", "cannot be used: File name too long"),
        ("file.png", "leaves .* by a symbolic link"),
        ("chain.png", "leaves .* by a symbolic link"),
        ("folder/s.png", "leaves .* by a symbolic link"),
        ("sub/up/s.png", "leaves .* by a symbolic link"),
        ("loop.png", "cannot be used: Too many levels of symbolic links"),
        ("dead.png", "dead.png does not exist"),
        ("no.png", "no.png does not exist"),
        ("a.png/b", "does not exist"),
        ("sub", "sub is not a file"),
        ("pipe.png", "pipe.png is not a file"),
    ],
)
def test_any_other_name_is_refused_in_one_short_line(root: Path, name: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        ImageRoot(root).find(name)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError) or len(str(caught.value)) < 400


def test_a_root_that_shares_its_beginning_with_another_folder_is_not_mistaken(root: Path) -> None:
    twin = root.with_name("root2")
    twin.mkdir()
    Image.new("RGB", (2, 2)).save(twin / "t.png")
    (root / "twin.png").symlink_to(twin / "t.png")
    with pytest.raises(ValueError, match="symbolic link"):
        ImageRoot(root).find("twin.png")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("{}", "is base64 text without its kind: write 'data:image/png;base64,'"),
        ("data:image/png;base64,{}!", "'data:image/png;base64,...' of .* is not base64"),
        ("data:image/png,{}", "must begin with 'data:image/<kind>;base64,'"),
    ],
)
def test_encoded_content_is_not_repeated_in_a_message(root: Path, form: str, message: str) -> None:
    content = base64.b64encode(random.Random(0).randbytes(900)).decode()
    with pytest.raises(ValueError, match=message) as caught:
        ImageRoot(root).find(form.format(content))
    assert content[40:60] not in str(caught.value)
    assert str(len(form.format(content))) in str(caught.value)
