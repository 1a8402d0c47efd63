"""Extraction of embeddings, logits and predictions."""

DEFAULTS = {
    # A file or a folder of music. None: the log-mel files of datamodule.groundtruth_predict
    "audio": None,
    # Of each audio file, at most its central so many seconds, as datasets/preprocess.py keeps 300
    # by default; None: all of it. Of log-mel files it is all that is in them
    "max_seconds": None,
    # Of the same pass: some of "embeddings", "logits" and "predictions"; None: the command's own
    "outputs": None,
    # Whose embeddings: 0 to 11; -1 for the one after the final norm; a list; or "all". None: block
    # 7, or the last one of a shallower network
    "transformer_block": None,
    # Results: <out_dir>/<clip_length>sec/ and there <block>/<key>.embeddings.npy,
    # logits/<key>.logits.npy, predictions/<key>.predictions.{json,csv,png}
    "out_dir": "embeddings",
    # Over a track's patches, weighted by the seconds they add; "none" keeps them, and writes their
    # times beside: <key>.times.csv
    "pool": "mean",
    # Seconds from one patch to the next, in whole frames of 0.016; None: datamodule.clip_length
    "patch_hop": None,
    # What the last whole patch leaves: "keep" it as a shorter patch, "drop" it, or "pad" it with
    # silence; less than a second is left out
    "tail": "keep",
    "top": 5,  # labels that predict writes and prints
    "plot": False,  # predict: a picture of each track, activations over time beside the log-mel
    "quantize": None,  # "int8": Linear layers in 8 bits, on a CPU
    "overwrite": False,  # make again what is there
    # "3/100": the third of a hundred parts, for job arrays; the files must stay the same meanwhile.
    # When all are done, a run without it does what was missed, and joins their lists
    "shard": None,
    # Patches that go through the network at once; None: 32 on a GPU, 4096 tokens on a CPU
    "patches_per_pass": None,
}
