"""NetBox as the demo and the container image serve it, with the static files that a web server would serve."""

from django.conf import settings
from whitenoise import WhiteNoise

from netbox.wsgi import application as netbox

site = WhiteNoise(netbox, root=settings.STATIC_ROOT, prefix=settings.STATIC_URL)


def application(environ, start_response):
    """Serve a page, even if its URL was joined from the site's URL with a trailing slash and a full path."""
    environ['PATH_INFO'] = '/' + environ['PATH_INFO'].lstrip('/')
    return site(environ, start_response)
