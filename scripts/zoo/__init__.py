"""How the shipped models were made: data, recipes and the loop that `scripts/build_zoo.py` runs."""
