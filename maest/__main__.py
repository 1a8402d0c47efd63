"""``python -m maest``: the command `maest`."""

from maest.command import main

main()
