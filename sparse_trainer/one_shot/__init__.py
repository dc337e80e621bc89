"""One-shot pruning: score units on a calibration set, choose, repair, cut. No training."""
