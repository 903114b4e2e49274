"""Context managers that change settings of the whole process, and restore the caller's settings at the end.

Log levels, the environment, torch's threads and random numbers exist only once in a process, and a program that calls
deploykit uses them for other work, too.
"""

import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_loggers(*loggers: str) -> Iterator[None]:
    """Lets loggers of these names log errors only."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    try:
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switches off transformers' progress bars, which would break up lines of deploykit; downloads keep theirs."""
    were_enabled = transformers_logging.is_progress_bar_enabled()
    _switch_bars(transformers_logging.disable_progress_bar)
    try:
        yield
    finally:
        if were_enabled:
            _switch_bars(transformers_logging.enable_progress_bar)


def _switch_bars(switch: Callable[[], None]) -> None:
    """Switches transformers' progress bars by one of its functions, but not those of huggingface_hub.

    The function switches both, so those of huggingface_hub are switched back.
    """
    hub_bars_enabled = not are_progress_bars_disabled()
    with warnings.catch_warnings(action="ignore"):  # huggingface_hub warns if HF_HUB_DISABLE_PROGRESS_BARS is set
        switch()
        enable_progress_bars() if hub_bars_enabled else disable_progress_bars()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sets the number of torch's threads."""
    before = torch.get_num_threads()
    if count == before:  # the usual case; the call would take time for each batch
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def restored_environment() -> Iterator[None]:
    """Restores the environment variables, which transformers' Trainer changes."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def restored_random_state() -> Iterator[None]:
    """Restores the states of the random number generators of Python, numpy and torch."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Puts a module and all its submodules into evaluation mode; changes nothing if the module is in that mode."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
