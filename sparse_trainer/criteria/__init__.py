"""Criteria: those that score once, on a calibration set, and those that score while a model trains."""
