"""Tools in rooms, one idea a file; nothing here imports `config`, `models` or `datasets`.

Here: errors, names, differences of settings, and the choice of blocks, which all packages share.
"""

if __name__ == "helpers":  # imported by its older name, in a checkout
    from maest.checkout import alias

    alias(__name__)
