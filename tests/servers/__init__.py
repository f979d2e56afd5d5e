"""Servers and a network of the tests' own, to be killed, cut off and healed."""
