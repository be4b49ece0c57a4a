"""NetBox as the demo and the container image serve it: static files, which are a web server's work, come with it."""

from django.conf import settings
from whitenoise import WhiteNoise

from netbox.wsgi import application as netbox

site = WhiteNoise(netbox, root=settings.STATIC_ROOT, prefix=settings.STATIC_URL)


def application(environ, start_response):
    """Serve a page, also if its address was put together from that of the site, with its slash, and a whole path."""
    environ['PATH_INFO'] = '/' + environ['PATH_INFO'].lstrip('/')
    return site(environ, start_response)
