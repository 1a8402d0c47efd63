"""What the commands of ex_maest.py and ex_tl.py do."""
