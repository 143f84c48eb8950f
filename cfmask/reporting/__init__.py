"""Reporting: figures with their protocol -> tables, charts, pages and pictures."""
