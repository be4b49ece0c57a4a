"""Where things are."""

import os
from pathlib import Path

__all__ = (
    'CACHE',
    'ROOT',
    'STATE',
)

# The checkout
ROOT = Path(__file__).resolve().parents[2]

# What running the plugin creates in the checkout: `make clean` removes it
STATE = ROOT / 'development' / '.state'

# Shared with other checkouts of the same user
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'netbox-celery'
