"""By whom, and on images of which resize, a proof was answered; the configurations that daemons took and refused"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("proofs", sa.Column("answered_by", sa.String(), nullable=True))
    op.add_column("proofs", sa.Column("resize", sa.String(), nullable=True))
    op.create_table(
        "configurations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("because", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_configurations")),
    )
