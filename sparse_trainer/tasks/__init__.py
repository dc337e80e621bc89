"""What can be trained and measured: one file per task, named in `registry`."""
