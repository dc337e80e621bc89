"""What a user can ask of fine-pruning: flat options, parsed and checked once."""
