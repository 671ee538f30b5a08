"""What is run: data, models, training, experiments, records, tables and plots."""

import os

# Idle OpenMP threads that spin steal the core from the thread that they wait for: on two shared cores training was up
# to ten times slower so. Read by the OpenMP runtime when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
