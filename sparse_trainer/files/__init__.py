"""Files: written whole, and read with one typed error each."""
