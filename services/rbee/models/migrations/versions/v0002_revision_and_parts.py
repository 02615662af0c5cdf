"""The hub's commit that a model came from, and the digests of the parts of a split model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add both columns, empty."""
    op.add_column("models", sa.Column("revision", sa.Text))
    op.add_column("models", sa.Column("part_digests", sa.JSON))


def downgrade() -> None:
    """Drop both."""
    with op.batch_alter_table("models") as table:
        table.drop_column("part_digests")
        table.drop_column("revision")
