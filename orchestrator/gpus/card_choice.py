"""Which cards of a host a driver reads, and what it says before it asks one: by default all, and nothing."""


def every_card(_index: int) -> bool:
    """Read this card, whichever it is."""
    return True


def say_nothing(_index: int | None) -> None:
    """Tell nobody which card is asked next."""
