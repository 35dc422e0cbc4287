"""The tests; a package only so that no installed package of this name can stand before it."""
