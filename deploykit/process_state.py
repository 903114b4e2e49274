"""Settings of the whole process for as long as a block lasts: afterwards they are what the caller had chosen.

Libraries know many settings only for the process: levels of loggers, the environment, torch's threads, random numbers.
Whoever calls deploykit from Python has chosen them for other work, too.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Lets loggers of these names say errors only."""
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
    """Switches off the progress bars of transformers and huggingface_hub, which would appear between our own lines."""
    transformers_bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings(action="ignore"):  # given if HF_HUB_DISABLE_PROGRESS_BARS decides
        transformers_logging.disable_progress_bar()  # switches both
    try:
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):
            if transformers_bars:
                transformers_logging.enable_progress_bar()
            if not hub_bars:
                disable_progress_bars()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch compute on so many threads."""
    before = torch.get_num_threads()
    if count == before:  # as in most calls of an engine
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def environment() -> Iterator[None]:
    """Takes back what is done to the environment, as transformers' Trainer does."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def draws() -> Iterator[None]:
    """Takes back seeds: what is drawn afterwards is what would have been drawn without the block."""
    own, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Puts a module and all of its parts into evaluation mode."""
    learning = [module for module in model.modules() if module.training] if model.training else []
    for module in learning:
        module.training = False
    try:
        yield
    finally:
        for module in learning:
            module.training = True
