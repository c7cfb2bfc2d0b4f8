"""Where each sample stands, kept; and the triggers that note whose standing a change touches

A later migration that alters one of these tables by copying it drops its triggers: it has to make them again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

OVER = "('ready', 'held')"  # while a drop is being read its new samples count for nothing, known ones do
# No row is ever deleted from these tables, and no occurrence passes to another sample: nothing has to note that.
TRIGGERS = {
    "occurrence_added": f"""AFTER INSERT ON occurrences
        WHEN (SELECT state FROM drops WHERE id = NEW.drop_id) IN {OVER}
        OR EXISTS (SELECT 1 FROM standings WHERE sample_id = NEW.sample_id)
        BEGIN INSERT OR IGNORE INTO stale VALUES (NEW.sample_id); END""",
    "occurrence_changed": """AFTER UPDATE OF class, drop_id, gone ON occurrences
        BEGIN INSERT OR IGNORE INTO stale VALUES (NEW.sample_id); END""",
    "reviewed": """AFTER INSERT ON labels WHEN NEW.source = 'review'
        BEGIN INSERT OR IGNORE INTO stale VALUES (NEW.sample_id); END""",
    "sample_changed": """AFTER UPDATE OF group_id, forgotten ON samples
        BEGIN INSERT OR IGNORE INTO stale VALUES (NEW.id); END""",
    "flag_added": """AFTER INSERT ON flags
        BEGIN INSERT OR IGNORE INTO stale VALUES (NEW.sample_id); END""",
    "flag_changed": """AFTER UPDATE OF state, score, suggested_score ON flags
        BEGIN INSERT OR IGNORE INTO stale VALUES (NEW.sample_id); END""",
    "drop_over": f"""AFTER UPDATE OF state ON drops WHEN NEW.state IN {OVER} AND NEW.state <> OLD.state
        BEGIN INSERT OR IGNORE INTO stale SELECT sample_id FROM occurrences WHERE drop_id = NEW.id; END""",
}


def upgrade() -> None:
    op.create_index(op.f("ix_occurrences_drop_id"), "occurrences", ["drop_id"], unique=False)
    op.create_index(
        "ix_labels_reviewed", "labels", ["sample_id"], unique=False, sqlite_where=sa.text("source = 'review'")
    )
    op.add_column("snapshots", sa.Column("changed", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "standings",
        sa.Column("sample_id", sa.Integer(), nullable=False),
        sa.Column("class", sa.String(), nullable=True),
        sa.Column("role", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("drop_id", sa.Integer(), nullable=True),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_standings_sample_id")),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_standings")),
    )
    op.create_index("ix_standings_state_class_role", "standings", ["state", "class", "role"], unique=False)
    op.create_index("ix_standings_state_drop_id", "standings", ["state", "drop_id"], unique=False)
    op.create_index(op.f("ix_standings_changed"), "standings", ["changed"], unique=False)
    op.create_table(
        "stale",
        sa.Column("sample_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("sample_id", name=op.f("pk_stale")),
    )
    for name, what in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER stale_{name} {what}")
    op.execute("INSERT INTO stale SELECT id FROM samples")
