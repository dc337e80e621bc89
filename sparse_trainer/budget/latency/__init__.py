"""Time as a cost: tables of measured times, what a model would take at other widths, and budgets in it."""
