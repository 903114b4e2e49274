"""The service of a package: it answers requests, with access control, limits and metrics.

    request -> http.guard       checks route, key, limits, size and schema; turns errors into problems; logs one line
            -> runtime          tokenizes, waits for the engine, makes the answer
            -> queue.batcher    chooses which texts share a batch, and drops those for which nobody waits any more

`launch` starts a process, `settings` says how it is configured. BentoML runs the process and describes the API; only
`service` and `bento_store` know BentoML. Nothing here imports torch, transformers, datasets or optimum.
"""
