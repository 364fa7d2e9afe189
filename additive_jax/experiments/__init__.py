"""The experiments: each is a module with `run(config, workdir)`."""
