"""NetBox as the demo and the container image serve it: static files, which are a web server's work, come with it."""

from django.conf import settings
from whitenoise import WhiteNoise

from netbox.wsgi import application as netbox

application = WhiteNoise(netbox, root=settings.STATIC_ROOT, prefix=settings.STATIC_URL)
