"""Tools for the development of the plugin; nothing here is part of it."""
