"""Extraction of embeddings and logits."""

DEFAULTS = {
    "transformer_block": 11,  # whose embeddings: 0 to 11; -1 for the one after the final norm
    "out_dir": "embeddings",  # results: <out_dir>/<clip_length>sec/<block>/<key>.embeddings.npy
    "pool": "mean",  # over a track's patches, weighted by their seconds; "none" keeps them
    "patches_per_pass": 32,  # patches that go through the network at once
}
