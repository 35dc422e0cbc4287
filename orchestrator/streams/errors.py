"""redis's errors by what the transport does about them, for modules that may not import redis."""

from typing import Final

from redis import exceptions

#: The connection is of no use any more.
CONNECTION_ERRORS: Final = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
#: The server refused a command.
ResponseError: Final = exceptions.ResponseError
#: The server does not know a script: it has been restarted.
NoScript: Final = exceptions.NoScriptError
#: The server has become a replica.
ReadOnly: Final = exceptions.ReadOnlyError
