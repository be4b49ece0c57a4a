"""What one needs to work on the plugin, and nothing that is part of it."""
