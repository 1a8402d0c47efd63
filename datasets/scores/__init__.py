"""The embedded data set: compositions of the music21 corpus, performed by a SoundFont."""

from pathlib import Path

DATA_DIR = Path(__file__).resolve().parent / "data"  # where it is built, unless told otherwise
