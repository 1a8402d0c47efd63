"""The embedded data set: compositions of the music21 corpus, performed by a SoundFont."""

from maest.helpers.data_folder import data_folder

DATA_DIR = data_folder() / "scores" / "data"  # where it is built, unless told otherwise
