"""Results of extraction: a track's, as arrays, files and tables, and the folder's manifest."""
