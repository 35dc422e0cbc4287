"""How it happens: load, decide, apply, through the ports."""
