"""HTTP: routes, the guard in front of them, bodies, responses and connections."""
