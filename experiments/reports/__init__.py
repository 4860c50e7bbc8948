"""Tables and figures of the experiments, from result lines and curves."""
