"""Whether a service of `docker-compose.yml` is healthy, without loading NetBox: `healthy.py web` or `rqworker`."""

import os
import socket
import sys
from urllib.request import urlopen

from redis import Redis


def web():
    with urlopen('http://127.0.0.1:8080/login/', timeout=10) as response:
        return response.status == 200


def rqworker():
    redis = Redis(
        os.environ.get('REDIS_HOST', 'redis'), int(os.environ.get('REDIS_PORT', '6379')),
        password=os.environ['REDIS_PASSWORD'],
    )
    # RQ removes dead workers from this set
    return any(redis.hget(key, 'hostname') == socket.gethostname().encode() for key in redis.smembers('rq:workers'))


if __name__ == '__main__':
    sys.exit(not {'web': web, 'rqworker': rqworker}[sys.argv[1]]())
