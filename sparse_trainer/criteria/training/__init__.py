"""Criteria that score while a model trains: one file each, named in `registry`."""
