"""The commands that look at runs and configs: they read files, and start without JAX."""
