"""
Tasks that misbehave, by what they exercise. `side.note()` records what their bodies really did.

Celery finds this package, so it imports all of its modules. Those with a name of their own in tests, such as `canvas`
and `policies`, are imported from there; the tasks of the others from here.
"""
import os

import billiard

# As a plugin might: how a worker starts its processes
if method := os.environ.get('NETBOX_TEST_START_METHOD'):
    billiard.set_start_method(method, force=True)

# ruff: noqa: E402, F401
from . import branches, canvas, chaos, classes, declared, delays, policies, threads
from .calls import call, call_directly, call_itself
from .cancel import cooperate, look
from .data import change, change_tags, query
from .failures import Unprintable, fail, late_echo, leave, leave_late, plain_leave
from .gates import across, hold, hold_and_fail, hold_and_retry, hold_late, hold_rejecting, hold_retrying, read
from .logs import (
    broken_transaction,
    open_transaction,
    say,
    say_about,
    say_all,
    say_and_retry,
    say_mine,
    say_much,
    say_on_a_quiet_worker,
    use_logging,
)
from .losses import fade, kill_always, kill_once, kill_self, retry_on_lost
from .refusals import ignore, ignore_started, reject, reject_late
from .replacements import noted, plain_replace, replace, replace_at, replace_late
from .retries import autoretry, autoretry_unbound, limits, retry, retry_elsewhere, retry_ignored, retry_in_transaction
from .returns import RESULTS, answer, go_deep, nested
from .rows import end_itself, measure, percent, show, show_progress, whoami
from .shapes import (
    anonymous,
    decorated,
    doubler,
    echo,
    echo_late,
    echo_slowly,
    handlers,
    plain,
    plain_failing,
    positional,
    unbound,
)
from .timelimits import hard, hard_late, sleep_in_database, sleep_limited, soft
