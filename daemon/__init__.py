"""Notices, remembers, dispatches: the only package with state."""
