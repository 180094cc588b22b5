"""Labelled CT on disk: the layouts in which data sets are published, their splits, and reading a case."""
