"""Exporting: what the formats of other tools share."""
