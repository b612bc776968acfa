"""A named pipe in place of a data file is refused; opening it would wait for ever."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from data_opening import open_samples

from dmole.benchmarks.predictions import read_predictions
from dmole.benchmarks.retention.readers import mme_items, pope_items
from dmole.data.items import SourceFiles
from dmole.data.sources.tables import open_saved
from dmole.models.pretrained import PretrainedBackbone


@pytest.mark.parametrize("name", ["a.tsv", "a.parquet", "folder/a.parquet", "folder/a.tar"])
def test_a_pipe_in_place_of_data_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    source = path if path.parent == tmp_path else path.parent
    with pytest.raises(ValueError, match=rf"{name}: it is a named pipe, not a file"):
        open_samples(str(source), "train")


def test_a_pipe_in_a_saved_data_set_or_a_base_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    os.mkfifo(tmp_path / "dataset_info.json")
    with pytest.raises(ValueError, match=r"dataset_info.json: it is a named pipe"):
        open_saved(tmp_path, "train", {})
    with pytest.raises(ValueError, match=r"the base model .*dataset_info.json: it is a named pipe"):
        PretrainedBackbone(str(tmp_path))


def test_a_pipe_in_place_of_benchmark_files_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    for read in (pope_items, mme_items):
        path = tmp_path if read is mme_items else tmp_path / "a.txt"
        with pytest.raises(ValueError, match=r"a.txt: it is a named pipe"):
            list(read(SourceFiles(path, "test")))


def test_a_member_with_holes_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("0.txt")
        member.size = 512
        archive.addfile(member, io.BytesIO(b"\0" * 512))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    header = bytearray(content[:512])
    header[156:157] = b"S"  # GNU's sparse file, whose real size is stated apart
    header[257:265] = b"ustar  \0"
    header[386:410] = b"00000000000\x0000000001000\x00"
    header[483:495] = b"77777777777\0"  # 8 GiB
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[:512] = header
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tar: damaged or no tar file: member 0.txt has holes"):
        open_samples(str(tmp_path / "a.tar"), "train")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "broken JSON: lists or mappings are nested too deep"),
        ('{"id": 1, "text": "a"}\n{"id": ' + "9" * 5000, "broken JSON: Exceeds the limit"),
        ('{"id": 1, "text": "a"}\n{"id"', "broken JSON at line 2"),
    ],
)
def test_predictions_that_cannot_be_parsed_are_named(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.jsonl: .*{reason}"):
        read_predictions(path)
