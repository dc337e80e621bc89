"""Programs for ExecuTorch."""
