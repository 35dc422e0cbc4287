"""What the tests share: servers, waiting, commands."""
