"""GPUs behind one port: NVML and simulated."""
