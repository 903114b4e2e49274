"""The service: a package answers requests, guarded, bounded and measured.

    request -> guard      route, key, rate, size, schema; problem details; one log line
            -> BentoML    the typed API, its schema, the life of the process
            -> runtime    tokenize, wait for the engine, answer
            -> batcher    which inputs share a batch, and which are no longer worth computing

`settings` and `keys` say what is allowed, `metrics` what is counted, `launch` starts a process. Only
`service` and `store` know BentoML, and nothing here imports torch, transformers, datasets or optimum.
"""
