"""Small tools, one idea a file. Nothing here imports `config`, `models` or `datasets`."""

if __name__ == "helpers":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
