"""Nodes without new tasks, and the roll-out under way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create ``cordons`` and ``rollouts``, which has at most one row."""
    op.create_table(
        "cordons",
        sa.Column("node_name", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since_unix", sa.Integer, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "rollouts",
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("operator", sa.Text, nullable=False),
        sa.Column("since_unix", sa.Integer, nullable=False),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("rollouts")
    op.drop_table("cordons")
