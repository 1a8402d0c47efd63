"""CPU seconds until a command has done what was typed, where little is to be done.

    python benchmarks/start_up.py [--repeats 5] [--against TREE] [--record FILE.json]

User and system seconds of the command and of what it starts, so that what else the machine does
counts less. Beside the commands: `import torch` alone, which `predict` cannot do without.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import harness
from harness import Bench, Figures, Way

_MAEST = "-c 'import sys; sys.path.insert(0, \"{tree}\"); from maest.command import main; main()'"
# What is measured → what is typed after "python", and the exit code
LINES = {
    "import torch": ("-c 'import torch'", 0),
    "ours, print_config": ("{tree}/ex_maest.py print_config", 0),
    "ours, --help": ("{tree}/ex_maest.py --help", 0),
    "ours, a misspelt setting": ("{tree}/ex_maest.py with module.lrr=1", 1),
    "ours, the probe's print_config": ("{tree}/ex_tl.py print_config", 0),
    "maest --help": (f"{_MAEST} --help", 0),
    "maest tag of a song": (f"{_MAEST} tag song.wav", 0),
    "ours, predict of a song": (
        "{tree}/ex_maest.py predict with maest.arch=maest-tiny-music inference.audio=song.wav",
        0,
    ),
}


def start(line: str, code: int) -> Figures:
    """Run a command of the tree that this process is of."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).standard_normal(16_000 * 10)
    soundfile.write("song.wav", 0.1 * noise, 16_000)
    return harness.command([sys.executable, *shlex.split(line.format(tree=harness.TREE))], code)


def main(given: list[str] | None = None) -> dict[str, Any]:
    packages = ("torch", "pytorch-lightning", "sacred", "onnxruntime")
    bench = Bench(__doc__, given, packages, repeats=5)
    ways = {name: Way(start, {"line": line, "code": code}) for name, (line, code) in LINES.items()}
    columns = {"CPU seconds": "{cpu_seconds:.2f}", "by the clock": "{seconds:.2f}"}
    bench.show("From a command to its end", bench.measure(ways), columns)
    return bench.record


if __name__ == "__main__":
    main()
