"""Missingness: what a model answers when parts of its image are hidden, and how they are hidden."""
