"""From raw domain data to adapters, mixtures of adapters and tables that can be trusted.

The library never imports Snakemake; `scripts/<rule>.py` are the doors between the two.
"""

__version__ = "0.3.0"
