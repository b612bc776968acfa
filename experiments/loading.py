"""Time and peak memory of loading a base model, compared with transformers alone (Linux).

Builds a random LLaVA of about 200 MB, then loads it in fresh processes, alternately with
`AutoModelForImageTextToText` + `AutoProcessor` and with `PretrainedBackbone`. Prints the medians.

    python -m experiments.loading [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODES = ("transformers", "dmole")
CHILD = """
import json, re, sys, time
from pathlib import Path
from transformers import AutoModelForImageTextToText, AutoProcessor
from dmole.models import PretrainedBackbone
mode, folder = sys.argv[1:]
AutoProcessor, AutoModelForImageTextToText.from_pretrained  # imports the modules of both modes
start, worked = time.perf_counter(), time.process_time()
if mode == "dmole":
    loaded = PretrainedBackbone(folder)
else:
    loaded = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
seconds, cpu = time.perf_counter() - start, time.process_time() - worked
# not getrusage: a child inherits the peak of its parent, which built the model
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"seconds": seconds, "cpu seconds": cpu, "megabytes": peak}))
"""


def save_model(folder: Path) -> float:
    """Write a random LLaVA with the processor of the embedded model; return its size in MB."""
    from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

    from dmole.demo.tiny import TINY_PATH

    widths = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = {"model_type": "clip_vision_model", **widths, "num_hidden_layers": 6}
    text = {"model_type": "llama", **widths, "num_hidden_layers": 6, "vocab_size": 8000}
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(TINY_PATH).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def load(mode: str, folder: Path) -> dict[str, float]:
    """Load in a fresh process and return its seconds and peak megabytes."""
    command = [sys.executable, "-c", CHILD, mode, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="number of loads per mode")
    repeats = parser.parse_args().repeats
    folder = Path(tempfile.mkdtemp())
    try:
        print(f"random LLaVA of {save_model(folder):.0f} MB, medians of {repeats} fresh processes")
        load("transformers", folder)  # fills the file cache
        orders = [MODES if i % 2 else MODES[::-1] for i in range(repeats)]
        runs = [{mode: load(mode, folder) for mode in order} for order in orders]
    finally:
        shutil.rmtree(folder)
    for key in ("seconds", "cpu seconds", "megabytes"):
        plain, ours = (statistics.median(run[mode][key] for run in runs) for mode in MODES)
        print(f"{key:>12}: transformers {plain:.3f}, dmole {ours:.3f}, ratio {ours / plain:.3f}")


if __name__ == "__main__":
    main()
