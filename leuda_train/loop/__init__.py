"""step by step: processes, checkpoints, metrics, profile. Imports no other folder."""
