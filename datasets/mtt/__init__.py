"""MagnaTagATune: log-mel files and ground truths from its archive and its table of annotations.

E. Law, K. West, M. Mandel, M. Bay and J. S. Downie, "Evaluation of algorithms using games: the case
of music tagging" (ISMIR 2009).
"""
