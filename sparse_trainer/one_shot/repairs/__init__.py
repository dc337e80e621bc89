"""Closed-form repairs of the linears that read what went."""
