"""Schedules: when they are due (`due`), what happens then (`firing`), which beat sends (`leader`), what declares them.

`sync` writes which tasks and schedules a process has.
"""
