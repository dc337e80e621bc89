"""Labelled sets, files, corpora, and calibration batches."""
