"""What is true: jobs, leases, hosts and their rules. No I/O, no clock."""
