"""Schedules: when they are due (`due`), what happens then (`firing`), and which beat sends (`leader`).

`sources` reads the schedules of settings and code; `sync` writes which tasks and schedules a process has.
"""
