"""Results of tracks: their arrays, their files and tables, and the manifest of their folder.

`tracks` is what passes from reader to network to writer; `outputs` names the files.
"""
