"""What is left of runs: tables, curves and JSON, by the kind of program."""
