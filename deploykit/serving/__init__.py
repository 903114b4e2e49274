"""The service: a package answers requests, guarded, bounded and measured.

    request -> guard      route, key, rate, size, schema; problem details; one log line
            -> runtime    tokenize, wait for the engine, answer
            -> batcher    which inputs share a batch, and which are no longer worth computing

`settings` and `keys` say what is allowed, `metrics` what is counted, `launch` starts a process. BentoML starts the
process and describes the API; only `service`, `store` and `cork`, its own batching, know it, and nothing here
imports torch, transformers, datasets or optimum.
"""
