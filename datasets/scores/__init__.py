"""The embedded data set: compositions of the music21 corpus, performed by a SoundFont."""
