"""An index less: nothing asks which samples are of a group, and keeping it took a part of every intake"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_samples_group_id"), "samples")
