"""Model folders: write them, read them, cut and prune from one to the next."""
