"""How kombu learns of the URL schemes in every process of an environment where this product is installed.

kombu has an entry point for serializers and none for transports. It loads the former whenever kombu is imported, in
producers, workers and tools alike, and unpacks what it names; being unpacked registers the schemes. So a plain Celery
app adopts the transport with its ``broker_url`` alone. The serializer that comes with it is JSON under another name.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from orchestrator.transport import register

CONTENT_TYPE: Final = "application/x-redis-streams+json"


class Registration:
    """What the entry point names: the arguments of a serializer, for whoever asks."""

    def __iter__(self) -> Iterator[Any]:
        register()
        return iter((json.dumps, json.loads, CONTENT_TYPE, "utf-8"))


registration: Final = Registration()
