"""Faster forms of functions of one matrix; each is chosen where it pays and tested equal."""
