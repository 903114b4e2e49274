"""From bytes to a route and back: guard, routes, responses, bounds on JSON, patches of the server."""
