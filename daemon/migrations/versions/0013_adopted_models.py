"""Models that were trained elsewhere, and whether a model's graph gives an embedding"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("adopted", sa.String(), nullable=True))
    op.add_column("models", sa.Column("embeds", sa.Boolean(), nullable=False, server_default="1"))
