"""Measurements against peers, run by `make bench NAME=x`; not tests. What did not work is in LOG.md."""
