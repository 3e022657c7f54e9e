"""The program: the only place that joins `channel` and `settlement`."""
