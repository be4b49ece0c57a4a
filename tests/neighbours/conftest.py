"""Other software, real as it is installed: NetBox Branching, Flower, gevent, PgBouncer and the rest.

The NetBox of the test process has NetBox Branching as well. Workers belong to the NetBox of the integration tests, on
the same database, which has not: `make_instance(branching=True)` makes one for workers that has.
"""
from tests.integration.conftest import (  # noqa: F401
    committed,
    gate,
    instance,
    make_beat,
    make_instance,
    make_module_worker,
    make_worker,
    rabbitmq,
    shared_workers,
    side,
    user,
    worker_log,
)
