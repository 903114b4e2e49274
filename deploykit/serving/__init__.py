"""The service: a package answers requests, with access control, limits and metrics.

    request -> guard      route, key, rate, size, schema; problem details; one log line
            -> runtime    tokenize, wait for the engine, answer
            -> batcher    which inputs share a batch, and which are no longer worth computing

`settings` and `keys` say what is allowed, `metrics` what is counted, `launch` starts a process. BentoML runs the
process and describes the API; only `service` and `bento_store` know it. Nothing here imports torch, transformers,
datasets or optimum.
"""
