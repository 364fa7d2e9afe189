"""Search for good structures where there are too many to evaluate all of them.

`Search` is the loop: generations, budget, seed, what was evaluated. A method (`methods.METHODS`)
proposes the structures of the next generation; a new one is a class with `propose` and a row there.
"""

from additive_jax.search.loop import Search
from additive_jax.search.methods import METHODS, Evaluated, Method

__all__ = ['METHODS', 'Evaluated', 'Method', 'Search']
