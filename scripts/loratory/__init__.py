"""From raw domain data to adapters, mixtures of adapters and tables that can be trusted.

The library never imports Snakemake; `scripts/<rule>.py` are the doors between the two.
"""

import os

# Models of some types fetch kernels, which are programs, from the hub when they are built, where the package `kernels`
# is installed. Said here because transformers reads it when it is imported.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__version__ = "0.4.0"
