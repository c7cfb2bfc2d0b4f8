"""What people say to verdicts, pauses, and the one artifact that a person has a cycle judge"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("cycles", sa.Column("about", sa.String(), nullable=True))
    op.add_column("verdicts", sa.Column("approval", sa.String(), nullable=True))
    op.add_column("verdicts", sa.Column("answered", sa.Float(), nullable=True))
    op.add_column("verdicts", sa.Column("answered_by", sa.String(), nullable=True))
    op.add_column("verdicts", sa.Column("because", sa.String(), nullable=True))
    op.create_table(
        "pauses",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(), nullable=True),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("because", sa.String(), nullable=True),
        sa.Column("ended", sa.Float(), nullable=True),
        sa.Column("ended_by", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pauses")),
    )
    # What a cycle of before asked a person about waits on.
    newest = "SELECT max(id) FROM cycles WHERE state = 'done' GROUP BY target"
    asked = f"SELECT id FROM cycles WHERE outcome = 'ask' AND id IN ({newest})"
    op.execute(f"UPDATE verdicts SET approval = 'waiting' WHERE answer = 'ask' AND cycle_id IN ({asked})")
