"""From an audio file to its log-mel and its patches: decode, resample, transform, cut.

`reading` opens a file, `log_mel` transforms it, `patches` cuts it. `constants` has the front end's
numbers and imports no PyTorch.
"""
