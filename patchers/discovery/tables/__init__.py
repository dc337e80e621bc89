"""Tables of the names by which models call their parts."""
