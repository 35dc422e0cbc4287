"""The truth: the only importer of SQLAlchemy."""
