"""Sets of recordings with a teacher's tags: music of your own, to train on."""

from maest.helpers.files.data_folder import data_folder

DATA_DIR = data_folder() / "recordings" / "data"  # default folder of a set
