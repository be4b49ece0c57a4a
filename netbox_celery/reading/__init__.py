"""What pages and REST show of runs and schedules, as far as the reader may view it."""
