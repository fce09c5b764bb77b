"""Workloads as their vCPUs do them: one task a workload and vCPU."""
