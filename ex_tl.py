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

import maest.config as settings
from maest.experiments.compare import compare_runs
from maest.experiments.probe_predict import predict_with_probe
from maest.experiments.probe_report import run_probe
from maest.experiments.runs import (
    Experiment,
    command,
    configure,
    run_command_line,
    run_dir,
)
from maest.experiments.sweep_report import run_sweep
from maest.helpers import metrics

ex = Experiment("maest_tl", save_git_info=False)
configure(ex, settings.ProbeSettings, settings.TL_NAMED, settings.SENTENCES)


@command(ex, main=True)
def probe(_run, _config) -> dict[str, Any]:
    """Train the probe with several seeds, test each on its best epoch, and write a report."""
    folder = run_dir(_run)
    results = run_probe(_config, folder)
    shown = metrics.SHOWN[results["task"]]
    for measure in shown:
        _run.log_scalar(f"test_{measure}", results[measure]["mean"])
    return {**{m: results[m] for m in shown}, "folder": str(folder)}


@command(ex)
def sweep(_run, _config) -> dict[str, Any]:
    """Probe every block, choice of tokens and a learned mix of the blocks; draw the result."""
    return run_sweep(_config, run_dir(_run))


@command(ex)
def compare(_run, _config) -> dict[str, Any]:
    """Put finished runs, or probes of several extractions, side by side, with intervals."""
    return compare_runs(_config, run_dir(_run))


@command(ex)
def predict(_run, _config) -> dict[str, Any]:
    """Apply a finished probe, and the extractor it was trained on, to new music."""
    return predict_with_probe(_run, _config)


if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv, settings.TL_ALIASES))
