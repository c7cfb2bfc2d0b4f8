"""The journal's migrations (Alembic), applied by daemon/journal.py when a daemon starts."""
