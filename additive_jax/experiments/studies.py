"""The studies that `config.experiment` names."""

from additive_jax.experiments import booster, compress, cotrain, dna, experts, stochastic, sweep

STUDIES = {
  module.STUDY.name: module.STUDY
  for module in (sweep, cotrain, stochastic, experts, dna, booster, compress)
}
