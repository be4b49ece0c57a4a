"""
A real NetBox with all that it stands on, for development: a private PostgreSQL cluster, a private Redis, an instance.

Nothing here touches the machine's own services, and everything that is written lies under `development/.state`, but for
the cache of NetBox's migrated database. From the ground up:

    paths       where things are
    processes   starting, recognising and stopping processes
    postgres    a private PostgreSQL cluster
    redis       a private Redis server
    instance    NetBox's configuration for the two
    template    a cluster with NetBox's and our own migrations applied, made once, then copied
    services    all of these for as long as a test run or a command lasts
    demo        the same to look at and to keep: web, workers, example data

`python -m development.stack --help` says what can be done with them.
"""
