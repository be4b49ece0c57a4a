"""What people do to tasks, runs and schedules, in the user interface and in REST: who may, and what happens then."""
