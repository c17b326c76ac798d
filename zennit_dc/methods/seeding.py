'''Random numbers that depend on an image and a seed alone.'''
from contextlib import contextmanager

import numpy as np
import torch
from zennit.attribution import Attributor

from ..attribution import require_scores
from ..attribution.support import image_seed


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


class Seeded(Attributor):
    '''An attributor that draws random numbers, which here depend on each image's values and a seed alone.

    Parameters
    ----------
    attributor : :py:class:`zennit.attribution.Attributor`
        The attributor, which gets one image at a time.
    seed : int, optional
        The seed.
    '''
    def __init__(self, attributor: Attributor, seed: int = 0):
        super().__init__(attributor.model)
        self.attributor = attributor
        self.seed = seed

    def forward(self, input, attr_output_fn):
        '''The output and the attribution, see :py:meth:`zennit.attribution.Attributor.forward`.'''
        with torch.no_grad():
            output = require_scores(self.model(input.detach().clone()))
        found = []
        for image, relevance in zip(input.detach().split(1), attr_output_fn(output).split(1), strict=True):
            with seeded(image_seed(image[0], self.seed), input.device):
                found.append(self.attributor(image, relevance)[1])
        return output, torch.cat(found)
