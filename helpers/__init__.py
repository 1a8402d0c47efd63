"""Small tools, one idea a file. Nothing here imports `config`, `models` or `datasets`."""
