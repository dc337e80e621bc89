"""Fine-pruning: the Trainer, what drives gates and masks, and what a checkpoint records of it."""
