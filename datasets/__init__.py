"""The data: files in, batches out. It shadows the Hugging Face package of the same name."""
