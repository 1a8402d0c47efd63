"""The data: files in, batches out. This package shadows the Hugging Face package of the same name."""
