"""Work in several processes, threads or machines, and the signals that stop it.

A worker that crashes or hangs costs one item. Nothing here knows what the work is.
"""
