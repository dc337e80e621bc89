"""Folders turned into what other runtimes read: one file per target, and one line of `CONVERSIONS`."""
