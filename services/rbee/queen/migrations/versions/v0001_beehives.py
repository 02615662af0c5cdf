"""The nodes of the fleet, as first released."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create ``beehives``; a database made before migrations were recorded has it already."""
    op.create_table(
        "beehives",
        sa.Column("node_name", sa.Text, primary_key=True),
        sa.Column("ssh_host", sa.Text, nullable=False),
        sa.Column("ssh_port", sa.Integer, nullable=False, server_default="22"),
        sa.Column("ssh_user", sa.Text, nullable=False),
        sa.Column("ssh_key_path", sa.Text),
        sa.Column("git_repo_url", sa.Text),
        sa.Column("git_branch", sa.Text, nullable=False, server_default="main"),
        sa.Column("install_path", sa.Text, nullable=False),
        sa.Column("hive_port", sa.Integer, nullable=False, server_default="9200"),
        sa.Column("last_connected_unix", sa.Integer),
        sa.Column("last_error", sa.Text),
        sa.Column("status", sa.Text, nullable=False, server_default="unknown"),
        sa.Column("backends", sa.JSON),
        sa.Column("devices", sa.JSON),
        if_not_exists=True,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("beehives")
