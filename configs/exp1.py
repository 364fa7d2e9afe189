"""Exp 1."""

from configs import default


def get_config():
  config = default.get_config()
  config.experiment = 'sweep'
  return config
