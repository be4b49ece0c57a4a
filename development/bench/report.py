"""The report that is printed, and written to `development/.state/bench.json`."""

import json
import os
import platform
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from ..stack.paths import STATE
from ..stack.processes import write_json
from . import others

__all__ = (
    'Figure',
    'print_figures',
    'ratio',
    'save',
)

PATH = STATE / 'bench.json'

#: The aim of a figure: at least, or at most.
AIMS = {
    'drain_ratio': ('>=', 0.70),
    'first_run_s': ('<=', 6),
    'delay_ratio': ('>=', 0.50),
    'enqueue_many_ratio': ('>=', 4),
    'log_ratio': ('>=', 0.50),
    'log_caller_us': ('<=', 15),
    'log_visible_s': ('<=', 0.5),
    'history_ratio': ('<=', 1.5),
    'beat_idle_core_share': ('<=', 0.05),
    'prune_longest_s': ('<=', 1),
}


@dataclass
class Figure:
    """
    Args:
        key: Name in the file
        label: Printed name
        unit: `ratio`, `s`, `tasks/s`, ...
        samples: One value per round; the median represents them
    """
    key: str
    label: str
    unit: str
    samples: list

    @property
    def value(self):
        return statistics.median(self.samples)

    def to_dict(self):
        return {
            'unit': self.unit, 'median': rounded(self.value), 'min': rounded(min(self.samples)),
            'max': rounded(max(self.samples)), 'rounds': len(self.samples),
        }

    def __str__(self):
        spread = f'{shown(min(self.samples))} .. {shown(max(self.samples))}' if len(self.samples) > 1 else ''
        line = f'  {self.label:<52} {shown(self.value):>9} {self.unit:<8} {spread:<20}'
        if aim := AIMS.get(self.key):
            sign, limit = aim
            met = self.value >= limit if sign == '>=' else self.value <= limit
            line += f' aim {sign} {limit:g}: {"met" if met else "MISSED"}'
        return line.rstrip()


def ratio(key, label, above, below):
    """
    Return the ratios of two lists of samples that were taken in turns, each to its neighbor.
    """
    return Figure(key, label, 'ratio', [a / b for a, b in zip(above, below)])


def rounded(value):
    return float(f'{value:.4g}')


def shown(value):
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def print_figures(title, figures, seconds):
    busy = f', others had {shown_share()} of the machine' if others.shares else ''
    print(f'{title} ({seconds:.0f} s on {os.cpu_count()} cores{busy})')
    for figure in figures:
        print(figure)
    print(flush=True)


def shown_share():
    least, most = (f'{share:.0%}' for share in (min(others.shares), max(others.shares)))
    return least if least == most else f'{least} to {most}'


def save(measure, figures, *, quick):
    """
    Write the figures of one measurement, and keep the others.
    """
    try:
        report = json.loads(PATH.read_text())
    except (OSError, ValueError):
        report = {}
    for figure in figures:
        report[figure.key] = rounded(figure.value)
    report.setdefault('measured', {})[measure] = {
        'at': datetime.now(UTC).isoformat(timespec='seconds'),
        'quick': quick,
        'share_of_others': [round(share, 3) for share in others.shares],
        'figures': {figure.key: figure.to_dict() for figure in figures},
    }
    report['machine'] = {
        'cores': os.cpu_count(), 'python': platform.python_version(), 'celery': version('celery'),
        'netbox': version('netbox'), 'netbox-celery': version('netbox-celery'),
    }
    write_json(PATH, report, mode=0o644)
