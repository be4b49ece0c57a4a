"""
A real NetBox with all that it needs, for development: a private PostgreSQL cluster, a private Redis, an instance.

Nothing here touches the machine's own services, and all files are written under `development/.state`, except for the
cache of NetBox's migrated database. From the bottom up:

    paths       where things are
    processes   starting, recognizing and stopping processes
    postgres    a private PostgreSQL cluster
    redis       a private Redis server
    instance    NetBox's configuration for both
    template    a cluster with NetBox's and our own migrations applied, created once, then copied
    services    all of these for the duration of a test run or a command
    demo        the same, but permanent: web, workers, example data

`python -m development.stack --help` lists the commands.
"""
