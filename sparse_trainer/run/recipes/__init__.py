"""Recipe files."""
