"""Things to run on a stack; ``make run`` runs the tour."""
