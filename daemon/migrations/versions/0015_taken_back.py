"""What a person took back is no trouble: nobody is told that it could not be served"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

NOW = "(julianday('now') - 2440587.5) * 86400.0"


def upgrade() -> None:
    op.execute("DROP TRIGGER notice_of_promotion_failed")
    op.execute(
        f"""CREATE TRIGGER notice_of_promotion_failed
        AFTER UPDATE OF state ON promotions WHEN NEW.state = 'failed' AND OLD.state <> 'failed'
        AND coalesce(NEW.error, '') NOT LIKE 'withdrawn: %' AND coalesce(NEW.error, '') NOT LIKE 'taken back by %'
        BEGIN INSERT INTO notices (kind, target, about, what, reason, see, at)
        VALUES ('trouble', NEW.target, NEW.target || '/' || NEW.version,
            'version ' || NEW.version || ' could not be served', coalesce(NEW.error, NEW.reason),
            coalesce('explain c' || NEW.cycle_id, 'status'), {NOW}); END"""
    )
