"""Files in general: written whole or not at all, downloaded, unpickled without running code.

Nothing here knows what the files are about.
"""
