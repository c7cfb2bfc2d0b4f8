"""Groups by near-duplicates and by the user's key, manifests, and images that were forgotten"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("drops", schema=None) as batch_op:
        batch_op.add_column(sa.Column("files", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("samples", schema=None) as batch_op:
        batch_op.add_column(sa.Column("frames", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("forgotten", sa.Float(), nullable=True))
        batch_op.create_index(batch_op.f("ix_samples_group_id"), ["group_id"], unique=False)
    with op.batch_alter_table("occurrences", schema=None) as batch_op:
        batch_op.add_column(sa.Column("group", sa.String(), nullable=True))
    op.create_table(
        "near_duplicates",
        sa.Column("sample_id", sa.Integer(), nullable=False),
        sa.Column("twin_id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_near_duplicates_sample_id")),
        sa.ForeignKeyConstraint(["twin_id"], ["samples.id"], name=op.f("fk_near_duplicates_twin_id")),
        sa.PrimaryKeyConstraint("sample_id", "twin_id", name=op.f("pk_near_duplicates")),
    )
    op.create_index(op.f("ix_near_duplicates_twin_id"), "near_duplicates", ["twin_id"], unique=False)
    op.create_table(
        "manifests",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("mtime_ns", sa.Integer(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("refused", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_manifests")),
        sa.UniqueConstraint("folder", "path", name=op.f("uq_manifests_folder_path")),
    )
