"""Tables and numbers of docs/, made from the result lines under docs/results by `cog`."""
