"""The small process beside each worker that starts, watches and ends runners, and holds the GPUs' locks."""
