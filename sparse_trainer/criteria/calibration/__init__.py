"""Criteria that score once, on a calibration set: one file each, named in `registry`."""
