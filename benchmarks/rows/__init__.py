"""The rows of the table of benchmarks/README.md, by subject; ``table`` lists them, ``run_all.py`` runs them."""
