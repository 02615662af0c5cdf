"""The models of a node, as first released."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create ``models``; a catalog made before migrations were recorded has it already."""
    op.create_table(
        "models",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("local_path", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text),
        sa.Column("downloaded_at_unix", sa.Integer, nullable=False),
        sa.Column("last_used_unix", sa.Integer),
        sa.UniqueConstraint("provider", "reference", "variant"),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("models")
