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

# What running the plugin leaves behind in the checkout: `make clean` removes it
STATE = ROOT / 'development' / '.state'

# What other checkouts of the same user can use too
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'netbox-celery'
