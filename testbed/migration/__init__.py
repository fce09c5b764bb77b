"""The vMotion engine: pre-copy over TCP between two processes that share nothing else."""
