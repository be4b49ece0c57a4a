"""Addresses, of which there are none: who loads this module has loaded all addresses of NetBox."""
import os

#: The process that has loaded them.
LOADED_BY = os.getpid()

urlpatterns = ()
