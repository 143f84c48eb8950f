"""Commands: from arguments to table."""
