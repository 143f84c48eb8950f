"""Shifts: the evaluation sets, one file a family."""
