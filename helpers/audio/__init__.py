"""From an audio file to its log-mel and its patches: decode, resample, transform, cut.

`constants` has the front end's numbers and imports no PyTorch.
"""
