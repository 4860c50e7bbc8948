"""Systems: what an experiment trains, its data, models and runs. Questions are the pages'."""
