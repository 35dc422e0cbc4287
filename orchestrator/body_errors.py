"""What goes wrong with a request's body: three more leaves of the tree in ``errors``."""

from orchestrator.errors import InvalidRequest


class TooSlow(InvalidRequest):
    """The body did not come in time."""

    code = "too-slow"


class TooDeep(InvalidRequest):
    """The body's JSON is nested deeper than is read."""

    code = "too-deep"


class MalformedBody(InvalidRequest):
    """The body is not UTF-8, or is such as readers of JSON understand in different ways."""

    code = "malformed-request"
