"""Extraction of embeddings, logits and predictions."""

DEFAULTS = {
    # A file or a folder of music. None: the log-mel files of datamodule.groundtruth_predict
    "audio": None,
    # Of the same pass: some of "embeddings", "logits" and "predictions"; None: the command's own
    "outputs": None,
    # Whose embeddings: 0 to 11; -1 for the one after the final norm; a list; or "all"
    "transformer_block": 11,
    "out_dir": "embeddings",  # results: <out_dir>/<clip_length>sec/<block>/<key>.embeddings.npy
    "pool": "mean",  # over a track's patches, weighted by the seconds they add; "none" keeps them
    "patch_hop": None,  # seconds from one patch to the next; None: datamodule.clip_length
    # What the last whole patch leaves: "keep" it as a shorter patch, "drop" it, or "pad" it with
    # silence; less than a second is left out
    "tail": "keep",
    "top": 5,  # labels that predict writes and prints
    "plot": False,  # predict: a picture of each track, activations over time beside the log-mel
    "quantize": None,  # "int8": Linear layers in 8 bits, on a CPU
    "overwrite": False,  # make again what is there
    "shard": None,  # "3/100": the third of a hundred parts, for job arrays
    # Patches that go through the network at once; None: 32 on a GPU, 4096 tokens on a CPU
    "patches_per_pass": None,
}
