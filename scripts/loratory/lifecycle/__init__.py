"""What happens to adapters and bases after, or around, their training."""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # flwr reads it when it is imported: nothing is told to anybody
