"""CPU seconds until a command has done what was typed, where little is to be done.

    python benchmarks/start_up.py [--repeats 5] [--against TREE] [--record FILE.json]

User and system seconds of the command and of what it starts, so that what else the machine does
counts less. Beside the commands: `import torch` alone, which `predict` cannot do without.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from harness import Figures, Way, chosen, command, measure, parser, save, show, start_record

# What is measured → what is typed after "python", and the exit code
LINES = {
    "import torch": ("-c 'import torch'", 0),
    "ours, print_config": ("{tree}/ex_maest.py print_config", 0),
    "ours, --help": ("{tree}/ex_maest.py --help", 0),
    "ours, a misspelt setting": ("{tree}/ex_maest.py with module.lrr=1", 1),
    "ours, the probe's print_config": ("{tree}/ex_tl.py print_config", 0),
    "ours, predict of a song": (
        "{tree}/ex_maest.py predict with maest.arch=maest-tiny-scores inference.audio=song.wav",
        0,
    ),
}


def start(line: str, code: int) -> Figures:
    """Run a command of the tree that this process is of."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).standard_normal(16_000 * 10)
    soundfile.write("song.wav", 0.1 * noise, 16_000)
    typed = shlex.split(line.format(tree=sys.path[0]))
    figures = command([sys.executable, *typed], Path.cwd())
    if figures["exit_code"] != code:
        raise RuntimeError(figures["output"][-2000:])
    return {name: figures[name] for name in ("seconds", "cpu_seconds")}


def main(given: list[str] | None = None) -> dict[str, Any]:
    args = parser(__doc__, repeats=5).parse_args(given)
    record = start_record(args, "torch", "pytorch-lightning", "sacred", "onnxruntime")
    ways = {name: Way(start, {"line": line, "code": code}) for name, (line, code) in LINES.items()}
    rows = measure(chosen(ways, args.ways), args, apart=True)
    columns = {"CPU seconds": "{cpu_seconds:.2f}", "by the clock": "{seconds:.2f}"}
    show("From a command to its end", rows, columns)
    record["results"] = rows
    save(args, record)
    return record


if __name__ == "__main__":
    main()
