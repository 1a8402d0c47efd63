"""Downstream evaluation: train a small probe on saved embeddings, test it, and use it.

python ex_tl.py with target_scores_tl
python ex_tl.py with target_scores_tl data.types=cdt data.reduce=stack
python ex_tl.py sweep with target_scores_tl
python ex_tl.py compare with runs=[exp_logs/4,exp_logs/5]
python ex_tl.py compare with target_mtt_tl compare.embeddings_dirs=[emb/5sec,emb/30sec]
python ex_tl.py predict with probe=exp_logs/4 audio=my/music
"""

import sys

from maest.config import TL_ALIASES, TL_NAMED, ProbeSettings
from maest.experiments.runs import Experiment, configure, run_command_line

# command → the file of experiments/ with the function of its name, and what it does
COMMANDS = {
    "probe": ("probe", "Train probes with several seeds, test them, and write a report."),
    "sweep": ("sweep", "Probe every block, choice of tokens, and learned mix; draw the result."),
    "compare": ("compare", "Put runs, or several extractions, side by side, with intervals."),
    "predict": ("probe_predict", "Apply a finished probe, and its extractor, to new music."),
}
ex = Experiment("maest_tl", save_git_info=False)
configure(ex, ProbeSettings, TL_NAMED, COMMANDS, aliases=TL_ALIASES)

if __name__ == "__main__":
    sys.exit(run_command_line(ex, sys.argv))
