"""Reports of a model's quality: metrics with their intervals, tables in Markdown, pictures.

Nothing here computes outputs or reads data: arrays and rows come in.
"""
