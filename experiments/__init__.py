"""The commands of ex_maest.py and ex_tl.py."""
