"""Comparison: models and sets by name -> a report."""
