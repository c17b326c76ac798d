'''Layer-wise relevance propagation, as Zennit has it.'''
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torchvision
from torch.nn import Module
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm
from zennit.composites import EpsilonGammaBox, EpsilonPlus
from zennit.torchvision import ResNetCanonizer

from ..attribution import gradient_at
from ..core.places import spread


if TYPE_CHECKING:
    from ..data import Classifier


def canonizers(model: Module) -> list[Canonizer]:
    '''Zennit's canonizers that merge the batch norms of a model.'''
    if isinstance(model, torchvision.models.DenseNet):
        return []  # its batch norms stand before the convolutions
    return [ResNetCanonizer() if isinstance(model, torchvision.models.ResNet) else SequentialMergeBatchNorm()]


@contextmanager
def unchanged(model: Module) -> Iterator[None]:
    '''A context after which a model has its own parameters, and nothing hides them or its buffers.

    Zennit 1.0 leaves others: its rules leave equal parameters, and its canonizers biases of zeros, and attributes by
    which a module does not see what its parameters and buffers are converted to later.
    '''
    before = [(module, dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        for module, parameters in before:
            for name in (*parameters, *module._buffers):
                vars(module).pop(name, None)
            module._parameters.update(parameters)


class LRP(Gradient):
    '''Base class of layer-wise relevance propagation by a composite of Zennit.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    layer : str, optional
        The name of the module at whose output relevance is read and summed over channels: after an activation, if the
        output goes straight into one and nowhere else. The attribution is then its bilinear upsampling to the input's
        size, divided evenly among the input's channels. Default is the input.
    grid : tuple of int, optional
        The height and width of the grid of tokens at the layer, where they cannot be found from the input's.
    '''
    def __init__(
        self, classifier: 'Classifier', layer: str | None = None, grid: tuple[int, ...] | None = None
    ):
        super().__init__(classifier.model)
        self.preprocessing = classifier.preprocessing
        self.layer, self.grid = layer, grid

    @abstractmethod
    def composite_for(self, input):
        '''The composite for an input of shape (batch, channels, height, width).'''

    def forward(self, input, attr_output_fn):
        '''Compute the relevance, see :py:class:`zennit.attribution.Gradient`.'''
        with unchanged(self.model), self.composite_for(input).context(self.model):
            if self.layer is None:
                return super().forward(input, attr_output_fn)
            output, relevance, _ = gradient_at(self.model, self.layer, input, attr_output_fn, self.grid)
        return output, spread(relevance.sum(1, keepdim=True), input)


class LRPEpsilonPlus(LRP):
    '''Layer-wise relevance propagation with the ε-rule in fully connected layers and the z⁺-rule in convolutions, as
    Zennit has it: ``EpsilonPlus``. See :py:class:`LRP` for the parameters.'''
    def composite_for(self, input):
        '''The composite, see :py:meth:`LRP.composite_for`.'''
        return EpsilonPlus(canonizers=canonizers(self.model))


class LRPGamma(LRP):
    '''Layer-wise relevance propagation with the gamma rule, as Zennit has it: ``EpsilonGammaBox`` with the normalized
    range of pixels. See :py:class:`LRP` for the parameters.

    Raises
    ------
    ValueError
        In a call, if the preprocessing has not as many means as the input has channels.
    '''
    def composite_for(self, input):
        '''The composite, see :py:meth:`LRP.composite_for`.'''
        if len(self.preprocessing.mean) != input.shape[1]:
            raise ValueError(
                f'LRP-γ needs the mean and std of {input.shape[1]} channels, but has {len(self.preprocessing.mean)}'
            )
        mean, std = (
            input.new_tensor(values).view(-1, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        low, high = (((value - mean) / std).expand_as(input) for value in (0., 1.))
        return EpsilonGammaBox(low=low, high=high, canonizers=canonizers(self.model))
