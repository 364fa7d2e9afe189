"""Exp 5: start a large model from small ones trained in parallel on clusters of the data, and count
what that saves.

`config.model` is trained from scratch for `config.train.epochs`. Each of
`config.booster.variants` trains narrow copies of it for `config.booster.epochs`, all together,
makes a pool of the large model of them, and trains that for `config.booster.large_epochs`.
`run` gives a result with:

  table         structures.csv: the large model as each way of training made it
  variants      variants.csv: scores, FLOPs of the whole training, and what it saves of those of
                training from scratch at equal loss
  curves        curves.csv: test loss and metrics against all FLOPs and seconds spent
  receipts      receipts.csv: how the large pool was made, and max |Δoutput|
  clusters      clusters.csv: sizes of the clusters
  memory        memory.csv: bytes of the large training on each device and in host memory
"""

from additive_jax.experiments.booster.study import STUDY, run

__all__ = ['STUDY', 'run']
