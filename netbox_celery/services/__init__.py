"""What users do with tasks, runs and schedules, in the user interface and in REST: permission checks and change log."""
