"""Models for other programs: `python ex_maest.py export`."""

DEFAULTS = {
    "format": "huggingface",  # or "onnx", "safetensors"
    "out_dir": "export",  # <out_dir>/config.json …, <out_dir>/model.onnx, model.safetensors
    "blocks": None,  # onnx: whose embeddings it gives, [6, 7]; None: inference.transformer_block
    "with_frontend": False,  # onnx: take a waveform instead of a log-mel spectrogram
    "licence": None,  # of the weights, as the model card says it; None: that of what they came from
}
