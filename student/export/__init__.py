"""Students for other runtimes: the parts that all formats share, and the trial that an export must pass."""
