"""No URLs: a process that loads this module has loaded NetBox's URL configuration."""
import os

#: The process that loaded them.
LOADED_BY = os.getpid()

urlpatterns = ()
