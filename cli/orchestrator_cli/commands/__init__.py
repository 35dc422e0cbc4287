"""The verbs, a module a subject; each exports ``COMMANDS``."""
