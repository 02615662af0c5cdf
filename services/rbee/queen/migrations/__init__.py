"""The history of the node registry's tables, applied by alembic when a queen opens its database."""
