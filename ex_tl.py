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

from maest.config import TL_ALIASES, TL_NAMED, ProbeSettings
from maest.experiments.runs import Command, Experiment, configure, run_command_line

COMMANDS = {
    "probe": Command(
        "probe", "Train the probe with several seeds, test each on its best epoch, write a report."
    ),
    "sweep": Command(
        "sweep",
        "Probe every block, choice of tokens and a learned mix of the blocks; draw the result.",
    ),
    "compare": Command(
        "compare",
        "Put finished runs, or probes of several extractions, side by side, with intervals.",
    ),
    "predict": Command(
        "probe_predict",
        "Apply a finished probe, and the extractor it was trained on, to new music.",
    ),
}
ex = Experiment("maest_tl", save_git_info=False)
configure(ex, ProbeSettings, TL_NAMED, COMMANDS, TL_ALIASES)

if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv))
