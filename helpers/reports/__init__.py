"""Metrics with their intervals, and the tables and pictures that show them."""
