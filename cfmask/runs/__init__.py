"""Runs: a training's folder, what it costs, how it stops and goes on."""
