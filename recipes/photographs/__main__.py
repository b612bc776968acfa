"""Command line: `python -m recipes.photographs --output DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from dmole.demo.photographs import temporary_folder, unpack
from dmole.demo.stamps import read_photos
from recipes.photographs.alignment import Alignment, AlignmentSettings
from recipes.photographs.assembly import assemble, encoder_file
from recipes.photographs.weights import load_weights
from recipes.smollm2.__main__ import refuse_full, save_trained
from recipes.smollm2.assembly import load_language_model, weights_file


def make(settings: AlignmentSettings, output: Path, photographs: Path) -> Path:
    """Assemble the model, train its projector and save both with a record of the training.

    Args:
        settings: Settings that determine the outcome.
        output: New or empty folder; `PretrainedBackbone` reads the model from it.
        photographs: The unpacked package of photographs.

    Returns:
        The folder.

    Raises:
        FileExistsError: If ``output`` is a file or a folder that is not empty.
        ModuleNotFoundError: If weights are not installed.
        ValueError: If there are too few photographs.
    """
    refuse_full(output)
    photos = read_photos(photographs)
    torch.manual_seed(settings.seed)
    weights, _ = load_weights(encoder_file())
    model, processor = assemble(*load_language_model(weights_file()), weights)
    alignment = Alignment(model, processor, photos, settings)
    return save_trained(model, processor, alignment.run(), asdict(settings), output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the model."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.photographs",
        description="Make a base model of EfficientNet-Lite0 and SmolLM2-135M-Instruct.",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder to write to")
    parser.add_argument("--package", type=Path, help="the Debian package of photographs")
    for name, value in asdict(AlignmentSettings()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="default: %(default)s")
    values = vars(parser.parse_args(arguments))
    output, package = values.pop("output"), values.pop("package")
    torch.set_num_threads(1)  # fixed order of sums: the result is reproducible on one machine
    try:
        refuse_full(output)
        with temporary_folder() as folder:
            photographs = unpack(Path(folder), package)
            print(make(AlignmentSettings(**values), output, photographs))
    except (OSError, ModuleNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
