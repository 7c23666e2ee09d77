"""From a command line to a run: what flags may be and mean, and what is done about them."""
