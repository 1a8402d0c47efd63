"""Downstream evaluation: train a small probe on saved embeddings, test it, and use it.

python ex_tl.py with target_scores_tl
python ex_tl.py with target_scores_tl data.types=cdt data.reduce=stack
python ex_tl.py sweep with target_scores_tl
python ex_tl.py compare with runs=[exp_logs/4,exp_logs/5]
python ex_tl.py compare with target_mtt_tl compare.embeddings_dirs=[emb/5sec,emb/30sec]
python ex_tl.py predict with probe=exp_logs/4 audio=my/music
"""

from __future__ import annotations

import sys
from typing import Any

from maest.config import TL_ALIASES, TL_NAMED, ProbeSettings
from maest.experiments.runs import Experiment, Run, command, configure, run_command_line

# What a command needs is imported in it: what was typed is checked before, and without torch.
ex = Experiment("maest_tl", save_git_info=False)
configure(ex, ProbeSettings, TL_NAMED)


@command(ex, main=True)
def probe(run: Run, settings: ProbeSettings) -> dict[str, Any]:
    """Train the probe with several seeds, test each on its best epoch, and write a report."""
    from maest.experiments.probe import probe

    return probe(run, settings)


@command(ex)
def sweep(run: Run, settings: ProbeSettings) -> dict[str, Any]:
    """Probe every block, choice of tokens and a learned mix of the blocks; draw the result."""
    from maest.experiments.sweep import sweep

    return sweep(run, settings)


@command(ex)
def compare(run: Run, settings: ProbeSettings) -> dict[str, Any]:
    """Put finished runs, or probes of several extractions, side by side, with intervals."""
    from maest.experiments.compare import compare

    return compare(run, settings)


@command(ex)
def predict(run: Run, settings: ProbeSettings) -> dict[str, Any]:
    """Apply a finished probe, and the extractor it was trained on, to new music."""
    from maest.experiments.probe_predict import predict

    return predict(run, settings)


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, TL_ALIASES))
