"""The kombu transport over Redis Streams."""
