"""``python -m orchestrator_cli``: the same as ``orch``."""

from orchestrator_cli.main import main

if __name__ == "__main__":
    main()
