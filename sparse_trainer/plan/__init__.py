"""The record of a decision: what it holds, how it is made, and what a second run takes from it."""
