"""A virtual machine: memory, vCPU processes, workload, and the tracking of what it writes."""
