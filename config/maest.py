"""The network."""

DEFAULTS = {
    "arch": None,  # a name of models/archs.py; the checkpoint's, or else maest_tiny
    # Start from the published weights of the arch, fetched once; None: where it has any
    "pretrained": None,
    # Instead of them: a model folder (exp_logs/<id>/model), a folder from the model hub, or a file
    # of MAEST, PaSST or DeiT weights
    "checkpoint": None,
    # Which of a checkpoint's weights: None takes the average where there is one, True requires it,
    # False takes the weights of one epoch
    "checkpoint_swa_weights": None,
    "checkpoint_discard_head": False,  # a fresh head, even where the checkpoint's would fit
    "labels": None,  # names of the labels, for weights that carry none: a JSON list, or a text file
    "task": None,  # "multi-label" (default), "single-label" or "regression"; the checkpoint's
    "n_classes": None,  # the checkpoint's, or that of the ground truth
    "input_t": None,  # frames; the checkpoint's, or datamodule.clip_length · 16000 // 256
    "distilled_type": None,  # "mean" (default) or "separated": one head, or one each for cls, dist
    # Input: (x - norm_mean) / (2 · norm_std). The checkpoint's; with fresh weights, measured on the
    # data. The released models': 2.06755686098554, 1.268292820667291.
    "norm_mean": None,
    "norm_std": None,
    # Patchout in training, drawn for each batch. The grid of a 5 s clip has 9 rows x 30 columns.
    # Time columns dropped. None: about half, 3 a second, as in the paper; 0 where others always are
    "s_patchout_t": None,
    "s_patchout_f": 0,  # frequency rows dropped
    "u_patchout": 0,  # single patches dropped
    # Patchout that always acts, at inference too: it saves time by the share of tokens it drops,
    # and more where inputs are long (attention). The three above act in training alone.
    "s_patchout_t_indices": [],  # the columns with these numbers are dropped
    "s_patchout_f_indices": [],
    "s_patchout_t_interleaved": 0,  # only every k-th column is kept
    "s_patchout_f_interleaved": 0,
    "drop_rate": 0.0,  # dropout after projections
    "attn_drop_rate": 0.0,  # dropout of attention weights
    "drop_path_rate": 0.0,  # stochastic depth of the last block
}
