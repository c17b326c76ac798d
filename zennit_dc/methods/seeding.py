'''Random numbers that depend on an image and a seed alone.'''
import hashlib
from contextlib import contextmanager

import numpy as np
import torch


def image_seed(image, seed):
    '''A seed from the values of an image of shape (channels, height, width), and another seed.'''
    values = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.sha256(b'%d ' % seed + values).digest()[:7], 'big')


@contextmanager
def seeded(seed, device):
    '''A context in which the random numbers of NumPy, and of PyTorch on the CPU and a device, start from a seed.'''
    state = np.random.get_state()
    cuda = device.type == 'cuda'
    try:
        with torch.random.fork_rng([device] if cuda else []):
            torch.default_generator.manual_seed(seed)
            if cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            np.random.seed(seed % 2 ** 32)
            yield
    finally:
        np.random.set_state(state)
