"""`python -m additive_jax` is `python -m additive_jax.launch`."""

import sys

from additive_jax.launch import main

if __name__ == '__main__':
  sys.exit(main(sys.argv))
