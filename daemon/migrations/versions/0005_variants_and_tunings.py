"""Engines and precisions of a benchmark, artifacts that this machine cannot run, and tunings"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("flags", schema=None) as batch_op:
        batch_op.drop_constraint("fk_flags_model_id", type_="foreignkey")  # it may be a backbone, too
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("engine_version", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("unverified", sa.String(), nullable=True))
    with op.batch_alter_table("benchmarks", schema=None) as batch_op:
        batch_op.add_column(sa.Column("variant", sa.String(), nullable=False, server_default="onnxruntime:fp32"))
    op.create_table(
        "tunings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cycle_id", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("architecture", sa.String(), nullable=False),
        sa.Column("snapshot_id", sa.String(), nullable=False),
        sa.Column("best", sa.JSON(), nullable=False),
        sa.Column("trials", sa.JSON(), nullable=False),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name=op.f("fk_tunings_cycle_id")),
        sa.ForeignKeyConstraint(["snapshot_id"], ["snapshots.id"], name=op.f("fk_tunings_snapshot_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tunings")),
    )
    with op.batch_alter_table("tunings", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tunings_target"), ["target"], unique=False)
