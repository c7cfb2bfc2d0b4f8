"""What is told outward, to whom, and how far that has come; and the triggers that note what happened

A notice is written by the very transaction that makes it true, whoever writes that. A later migration that alters one
of these tables by copying it drops its triggers: it has to make them again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

NOW = "(julianday('now') - 2440587.5) * 86400.0"
NOTE = "BEGIN INSERT INTO notices (kind, target, about, what, reason, see, at)"
TRIGGERS = {
    "decision": f"""AFTER INSERT ON decisions WHEN NEW.action <> 'hold' {NOTE}
        VALUES ('decision', NEW.target, 'd' || NEW.id, NEW.action, NEW.reason, 'explain d' || NEW.id, NEW.at); END""",
    "verdict": f"""AFTER INSERT ON verdicts {NOTE}
        VALUES ('verdict', NEW.target, 'v' || NEW.id, NEW.answer, NEW.reason, 'explain v' || NEW.id, NEW.at); END""",
    "promotion": f"""AFTER UPDATE OF state ON promotions WHEN NEW.state = 'serving' AND OLD.state <> 'serving' {NOTE}
        VALUES (CASE NEW.kind WHEN 'rollback' THEN 'rollback' ELSE 'promotion' END, NEW.target,
            NEW.target || '/' || NEW.version, 'version ' || NEW.version || ' is served', NEW.reason,
            coalesce('explain v' || NEW.verdict_id, 'explain c' || NEW.cycle_id, 'status'), {NOW}); END""",
    # One that was withdrawn, because the constraints changed or images were forgotten, is no trouble.
    "promotion_failed": f"""AFTER UPDATE OF state ON promotions WHEN NEW.state = 'failed' AND OLD.state <> 'failed'
        AND coalesce(NEW.error, '') NOT LIKE 'withdrawn: %' {NOTE}
        VALUES ('trouble', NEW.target, NEW.target || '/' || NEW.version,
            'version ' || NEW.version || ' could not be served', coalesce(NEW.error, NEW.reason),
            coalesce('explain c' || NEW.cycle_id, 'status'), {NOW}); END""",
    "serving_trouble": f"""AFTER UPDATE OF error ON promotions
        WHEN NEW.state = 'serving' AND OLD.state = 'serving' AND NEW.error IS NOT NULL AND OLD.error IS NULL {NOTE}
        VALUES ('trouble', NEW.target, NEW.target || '/' || NEW.version,
            'version ' || NEW.version || ' is not served as it should be', NEW.error, 'status', {NOW}); END""",
    "serving_relief": f"""AFTER UPDATE OF error ON promotions
        WHEN NEW.state = 'serving' AND OLD.state = 'serving' AND NEW.error IS NULL AND OLD.error IS NOT NULL {NOTE}
        VALUES ('trouble', NEW.target, NEW.target || '/' || NEW.version,
            'version ' || NEW.version || ' is served as it should be again', 'it is over: ' || OLD.error,
            'status', {NOW}); END""",
    "cycle": f"""AFTER UPDATE OF state ON cycles
        WHEN OLD.state = 'running' AND NEW.outcome IN ('ask', 'violated', 'failed') {NOTE}
        VALUES (CASE NEW.outcome WHEN 'ask' THEN 'approval' WHEN 'violated' THEN 'violated' ELSE 'trouble' END,
            NEW.target, 'c' || NEW.id, CASE NEW.outcome WHEN 'ask' THEN 'a person is asked'
            WHEN 'violated' THEN 'nothing meets the constraints' ELSE 'cycle ' || NEW.id || ' failed' END,
            coalesce(NEW.reason, NEW.outcome), 'explain c' || NEW.id, coalesce(NEW.ended, {NOW})); END""",
    "hold": f"""AFTER UPDATE OF state ON drops WHEN NEW.state = 'held' AND OLD.state <> 'held' {NOTE}
        VALUES ('hold', NULL, 'drop ' || NEW.id, 'drop ' || NEW.id || ' is held',
            coalesce(NEW.reason, 'a person is to look first'), 'flags --drop ' || NEW.id, {NOW}); END""",
    "constraints": f"""AFTER INSERT ON constraint_files WHEN NEW.error IS NOT NULL {NOTE}
        VALUES ('trouble', NEW.target, NEW.target || '.toml', 'the constraint file is refused', NEW.error,
            'check-config', NEW.at); END""",
}


def upgrade() -> None:
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=True),
        sa.Column("about", sa.String(), nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("see", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notices")),
    )
    op.create_table(
        "listeners",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("heard", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_listeners")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("listener", sa.String(), nullable=False),
        sa.Column("notice_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try", sa.Float(), nullable=False),
        sa.Column("sent", sa.Float(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["notice_id"], ["notices.id"], name=op.f("fk_deliveries_notice_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("listener", "notice_id", name=op.f("uq_deliveries_listener_notice_id")),
    )
    op.create_index("ix_deliveries_listener_state", "deliveries", ["listener", "state"], unique=False)
    for name, what in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER notice_of_{name} {what}")
