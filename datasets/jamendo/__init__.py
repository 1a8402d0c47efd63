"""MTG-Jamendo: four tagging tasks with the published split, from tables and a folder of audio.

D. Bogdanov, M. Won, P. Tovstogan, A. Porter and X. Serra, "The MTG-Jamendo dataset for automatic
music tagging" (Machine Learning for Music Discovery Workshop, ICML 2019).
"""
