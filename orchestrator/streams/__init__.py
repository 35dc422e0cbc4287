"""The delivery: the only importer of redis."""
