"""Exp 2."""

from configs import default


def get_config():
  config = default.get_config()
  config.experiment = 'cotrain'
  return config
