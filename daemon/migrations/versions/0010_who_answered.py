"""By whom, and on images of which resize, a proof was answered: as long as both stay, its answers hold"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("proofs", sa.Column("answered_by", sa.String(), nullable=True))
    op.add_column("proofs", sa.Column("resize", sa.String(), nullable=True))
