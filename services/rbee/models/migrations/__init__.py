"""The history of the model catalog's tables, applied by alembic when an older catalog is opened."""
