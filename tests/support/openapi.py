"""The API's description as it is kept in docs/openapi.json; run as a program, it writes that file and the reference."""

import json
from pathlib import Path
from typing import Final

from orchestrator.api.app import create_app
from orchestrator.testing.fakes import memory_world
from tests.support import reference

PATH: Final = Path(__file__).parents[2] / "docs" / "openapi.json"


def openapi_text() -> str:
    """Return the description, laid out so that a change is a change of few lines."""
    return json.dumps(create_app(memory_world().runtime, token="any").openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(openapi_text())
    reference.PATH.write_text(reference.reference_text(json.loads(openapi_text())))
