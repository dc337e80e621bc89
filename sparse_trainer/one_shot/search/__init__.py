"""Widths by measured loss: levels of groups, what each costs the model, the best under a budget."""
