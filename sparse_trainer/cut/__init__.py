"""Make a model small: what its config can say of the cut, the differences that are left, the check."""
