"""A few hundred real texts with labels, on every machine: first lines of the standard library's docstrings.

What they are about (numbers or networks) is told by the module that they come from.
"""

import importlib
import inspect

MODULES = {
    "numbers": ("decimal", "fractions", "statistics", "math", "cmath", "random", "numbers", "datetime", "calendar"),
    "networks": (
        *("http.client", "http.server", "http.cookies", "urllib.request", "urllib.parse", "smtplib", "socket"),
        *("ssl", "ftplib", "imaplib", "poplib", "email.message", "email.utils", "ipaddress", "socketserver"),
    ),
}
TICKETS = 150  # of each label


def tickets():
    """Returns rows of `body` and `queue`, as many of each label, all different."""
    found = {}
    for label, names in MODULES.items():
        lines = dict.fromkeys(line for name in names for line in docstrings(importlib.import_module(name)))
        found |= dict.fromkeys([line for line in lines if line not in found][:TICKETS], label)
    return [{"body": line, "queue": label} for line, label in found.items()]


def docstrings(module):
    """Yields the first lines of what a module defines, methods included."""
    members = [member for _, member in sorted(vars(module).items(), key=lambda item: item[0])]
    inner = [value for member in members if inspect.isclass(member) for value in vars(member).values()]
    for member in [*members, *inner]:
        if callable(member) and getattr(member, "__module__", module.__name__) == module.__name__:
            line = (inspect.getdoc(member) or "").partition("\n")[0].strip()
            if len(line.split()) > 3:
                yield line
