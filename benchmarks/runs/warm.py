"""What workers are forked off imports this: all that they need is there, and nothing has begun."""

import gc

from benchmarks.runs.importing import importing

with importing():
    from benchmarks.runs import engines  # noqa: F401

gc.freeze()  # memory that no collection writes into stays shared with the workers
