"""The plan: the record of a decision."""
