"""The identity of a process, and whether it may declare other workers lost."""
import os
from types import SimpleNamespace

import pytest

from netbox_celery.engine import identity as identities
from netbox_celery.engine.identity import Identity


@pytest.fixture
def config(monkeypatch):
    config = SimpleNamespace(heartbeat_interval=0.05, worker_lost_after=0.4, sweep_interval=0.05)
    monkeypatch.setattr(identities, 'get_config', lambda: config)
    return config


class Clock:
    """A clock that a test sets by hand."""

    now = 1_000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(identities, 'time', clock)
    return clock


def test_new_worker_does_not_judge(identity, config, clock):
    """A worker judges others once its own heartbeats have been steady for as long as theirs may be missing."""
    assert not identity.may_declare_lost
    beat(identity, clock, 0.5)
    assert identity.may_declare_lost
    clock.now += 0.25
    assert not identity.may_declare_lost


def test_worker_does_not_judge_after_an_outage(identity, config, clock):
    """After a gap in its own heartbeats a worker waits again: others had the same outage."""
    beat(identity, clock, 0.5)
    clock.now += 0.25
    identity.note_beat()
    assert not identity.may_declare_lost
    beat(identity, clock, 0.5)
    assert identity.may_declare_lost


def beat(identity, clock, seconds):
    end = clock.now + seconds
    while clock.now < end:
        identity.note_beat()
        clock.now += 0.02


def test_new_key_at_each_start(identity):
    before = identity.key
    identity.take('w@host')
    assert identity.key != before
    assert not identity.is_child


def test_parent_and_child(identity, monkeypatch):
    """A worker's main process is a parent, a process forked from it a child; others are neither."""
    assert (identity.is_parent, identity.is_child) == (True, False)
    monkeypatch.setattr(identities.os, 'getpid', lambda own=os.getpid(): own + 1)
    assert (identity.is_parent, identity.is_child) == (False, True)
    assert (Identity().is_parent, Identity().is_child) == (False, False)
