"""Families of classifiers: one file each."""
